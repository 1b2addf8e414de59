"""The same checks on CUDA devices. They need a process of their own: fake devices must not be installed in it."""

import json

import pytest
import torch
from jobs import SMALL_RUN, TESTS, torchrun
from layouts import SPLIT, batch, relative, run, small
from rank_training import STEPS, cases
from rank_training import attempt as on_one

from experiments.layouts import A_STEP, Trained, differences
from splitnet import doctor, job, verify
from splitnet import run as run_command
from splitnet.equality import TOLERANCES, attempt, compare, identical, images, tolerances
from splitnet.measure.meter import Layout, Peak, alternate
from splitnet.network.execution import Execution
from splitnet.parallel.audit import audit
from splitnet.parallel.placement import build, host, place
from splitnet.training.data import load
from splitnet.training.loop import evaluate, train
from splitnet.training.optimizer import make_optimizer

ONE = pytest.param(["cuda:0", "cuda:0"], marks=pytest.mark.gpu, id="one")
TWO = pytest.param(["cuda:0", "cuda:1"], marks=pytest.mark.two_gpus, id="two")
on_gpus = pytest.mark.parametrize("devices", [ONE, TWO])


@pytest.fixture
def exact():
    """Deterministic algorithms and no TF32, as `verify` has it."""
    with verify.exact_kernels():
        yield


@pytest.fixture
def small_presets(monkeypatch):
    for command in (job, verify, doctor):
        monkeypatch.setattr(command, "preset", lambda name, towers, crosses: small(name, towers, crosses))


@on_gpus
@pytest.mark.parametrize("crosses", [None, "all"])
@pytest.mark.parametrize("name", SPLIT)
def test_towers_equal_the_whole_network(name, crosses, devices, exact):
    table = small(name, 2, crosses)
    logits, gradients, net = run(table, devices)
    whole_logits, whole_gradients, _ = run(table, ["cuda:0"])
    assert relative(logits, whole_logits) < 1e-12
    for parameter in whole_gradients:
        assert relative(gradients[parameter], whole_gradients[parameter]) < 1e-12, parameter
    assert set(net.ledger.transfers()) == set(table.transfers(6, itemsize=8))


EXECUTIONS = {
    "overlap": ("float64", {"overlap": True}),
    "compile": ("float64", {"compile": True}),
    "float16 on the wire": ("float32", {"wire": "float16"}),
    "bf16 on the wire, overlap": ("float32", {"wire": "bf16", "overlap": True}),
    "tf32": ("tf32", {"precision": "tf32"}),
    "bf16": ("bf16", {"precision": "bf16"}),
    "all": ("bf16", {"precision": "bf16", "wire": "bf16", "overlap": True, "compile": True}),
}


@on_gpus
@pytest.mark.parametrize("how", EXECUTIONS)
def test_every_execution_is_the_whole_networks_function(how, devices, exact):
    precision, options = EXECUTIONS[how]
    table, dtype = small("alexnet"), torch.float64 if precision == "float64" else torch.float32
    pixels, labels = images(table, 4, 0, dtype)
    found = attempt(build(table, devices=devices, **options).to(dtype), pixels, labels)
    like = {key: value for key, value in options.items() if key == "precision"}
    whole = attempt(build(table, devices=["cuda:0"], **like).to(dtype), pixels, labels)
    allowed = tolerances(precision, Execution(wire=options.get("wire")))
    for row in compare(table, found, whole):
        assert row.excess(allowed) <= 1, row


@pytest.mark.two_gpus
def test_overlap_waits_for_its_copies_under_load(exact):
    """A race would show as another loss or gradient now and then: the same step, devices busy, memory given away."""
    table, devices = small("alexnet"), ["cuda:0", "cuda:1"]
    pixels, labels = batch(table, 16)
    net = build(table, devices=devices, overlap=True).double()
    first: list[torch.Tensor] = []
    for _ in range(50):
        for device in devices:
            torch.mm(*(torch.ones(2048, 2048, device=device) for _ in range(2)))  # freed again, for others to fill
        net.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(pixels), labels.to("cuda:0"))
        loss.backward()
        found = [loss.detach(), *(p.grad.clone() for p in net.parameters())]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))


@pytest.mark.two_gpus
@pytest.mark.parametrize("name", SPLIT)
def test_two_gpus_equal_one_bit_for_bit(name, exact):
    table = small(name)
    pixels, labels = images(table, 4, 0, torch.float64)
    two, one = (
        attempt(build(table, devices=devices).double(), pixels, labels)
        for devices in (["cuda:0", "cuda:1"], ["cuda:0", "cuda:0"])
    )
    assert identical(two, one) == []


@on_gpus
@pytest.mark.parametrize("name", ["alexnet", "fashion"])
def test_the_same_run_twice_is_the_same_bit_for_bit(name, devices, exact):
    table = small(name)
    pixels, labels = images(table, 4, 0, torch.float64)
    first, again = (attempt(build(table, devices=devices).double(), pixels, labels) for _ in range(2))
    assert identical(first, again) == []


@on_gpus
@pytest.mark.parametrize("name", ["alexnet", "fashion"])
def test_gpus_compute_what_the_cpu_does_and_drop_the_same_units(name, devices, exact):
    table = small(name)
    pixels, labels = images(table, 4, 0, torch.float64)
    found = attempt(build(table, devices=devices).double(), pixels, labels)
    plain = attempt(build(table, devices=["cpu"]).double(), pixels, labels)
    for row in compare(table, found, plain):
        assert row.excess(TOLERANCES["float64"]) <= 10, row  # other kernels: other rounding
        assert row.differences.get("dropped", 0) == 0, row


@on_gpus
def test_the_ledger_of_a_step_is_the_tables(devices):
    table = small("alexnet")
    placement = place(table, devices)
    net = host(table, placement, seed=0)
    pixels, labels = batch(table, 4)
    torch.nn.functional.cross_entropy(net(pixels.float()), labels.to("cuda:0")).backward()
    found = audit(table, placement, net.ledger.transfers(), forward=4, backward=4)
    assert found.bytes == table.bytes_exchanged(4)
    assert (found.copies, found.host_copies) == (None, None)


@on_gpus
def test_losses_are_the_whole_networks_over_20_steps(devices, exact):
    table = small("fashion")
    split = load("synthetic", size=table.size, train=32, channels=table.channels).train
    losses = []
    for where in (devices, ["cuda:0"]):
        net = build(table, devices=where)
        steps = train(net, split, make_optimizer(net.parameters(), "sgd"), batch_size=4, seed=0, steps=20)
        losses.append([step.loss for step in steps])
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-4


@on_gpus
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_and_testing_run(devices, optimizer):
    table = small("alexnet")
    data = load("synthetic", size=table.size, train=12, test=10, channels=table.channels)
    net = build(table, devices=devices)
    steps = list(train(net, data.train, make_optimizer(net.parameters(), optimizer), batch_size=5, seed=0, epochs=1))
    assert [step.images for step in steps] == [5, 5, 2]
    assert evaluate(net, data.test, batch_size=4).images == 10


@on_gpus
def test_memory_counters_and_clocks_tell_something(devices):
    table = small("alexnet")
    placement = place(table, devices)
    peak = Peak(placement.devices)
    net = host(table, placement, seed=0)
    pixels, _ = batch(table, 4)
    sample = alternate([Layout("towers", placement.devices, lambda _: net(pixels.float()).sum().backward())], 0)
    assert sample["towers"].device > 0
    assert sample["towers"].wall > 0
    found = peak.bytes()
    assert set(found) == set(placement.devices)
    for device in found:
        towers = [i for i, where in enumerate(placement.devices) if where == device]
        assert found[device] > 2 * 4 * sum(table.parameters_on(tower) for tower in towers)  # weights, gradients, more


@on_gpus
def test_verify_proves_it(devices, small_presets, exact, capsys):
    assert verify.main(["--preset", "alexnet", "--devices", ",".join(devices)]) == 0
    assert "equal bit for bit" in capsys.readouterr().out
    assert verify.main(["--preset", "fashion", "--devices", ",".join(devices)]) == 0
    assert verify.main(["--preset", "alexnet", "--devices", ",".join(devices), "--break", "reduce-scatter"]) == 1
    assert "found." in capsys.readouterr().out
    assert not hasattr(torch, "fake")


@on_gpus
def test_a_run_measures_what_it_derives(devices, small_presets, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run_command, "ROUNDS", 2)
    words = ["--data", "fashion-mnist-small", "--batch-size", "8", "--steps", "2", "--out", str(tmp_path)]
    assert run_command.main([*words, "--devices", ",".join(devices)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "emulated" not in out
    [folder] = tmp_path.iterdir()
    found = json.loads((folder / "compare.json").read_text())
    replicas = ["replicas"] * (len(set(devices)) > 1)
    assert [layout["layout"] for layout in found["layouts"]] == ["towers", "whole", *replicas, "dense"]
    for layout in found["layouts"]:
        assert bool(layout["exchanged"]) == (layout["layout"] in ("towers", "replicas"))
        assert all(entry["measured"] == entry["derived"] > 0 for entry in layout["exchanged"])
        assert set(layout["memory"]) == set(layout["devices"])
        assert all(min(memory.values()) > 0 for memory in layout["memory"].values())
    assert not hasattr(torch, "fake")


@pytest.mark.gpu
def test_the_default_is_a_gpu():
    table = small("fashion")
    chosen = [str(device) for device in place(table).devices]
    assert chosen == (["cuda:0", "cuda:1"] if torch.cuda.device_count() > 1 else ["cuda:0", "cuda:0"])
    assert [str(device) for device in place(small("fashion", 1)).devices] == ["cuda:0"]


@pytest.mark.gpu
def test_a_gpu_that_is_not_there_is_one_line(capsys):
    name = f"cuda:{torch.cuda.device_count()}"
    assert verify.main(["--devices", f"{name},cuda:0"]) == 2
    assert capsys.readouterr().err.startswith(f"splitnet: error: --devices {name}: no such device (cuda:0")


@pytest.mark.two_gpus
def test_a_tower_on_the_wrong_gpu_is_refused():
    net = build(small("fashion"), devices=["cuda:0", "cuda:1"])
    net.hosted[1]["conv4"].to("cuda:0")
    pixels, _ = batch(net.architecture)
    with pytest.raises(RuntimeError, match="same device"):
        net(pixels.float())


@pytest.mark.two_gpus
@pytest.mark.ranks
def test_two_processes_by_nccl_train_as_one_does(tmp_path):
    ended = torchrun(2, TESTS / "rank_training.py", tmp_path, "2", "cuda")
    assert ended.code == 0, ended.err
    for case, (_, dtype, execution) in cases(2).items():
        if execution.wire:  # what crosses is rounded, which nothing on one device is
            continue
        found = Trained.read(tmp_path / f"{case}.safetensors")
        worst = differences(found, on_one(case, 2, devices=["cpu"]), dtype == torch.float64)
        tolerances = (1e-11, 1e-11, 1e-11) if dtype == torch.float64 else (1e-4, float("inf"), float("inf"))
        assert all(value <= most for value, most in zip(worst, tolerances, strict=True)), (case, worst)
        assert found.collectives == {kind: count * STEPS for kind, count in A_STEP.items()}


@pytest.mark.two_gpus
@pytest.mark.ranks
def test_a_run_of_two_processes_uses_a_gpu_each(tmp_path):
    words = [
        "--towers",
        "2",
        "--data",
        "fashion-mnist-small",
        "--batch-size",
        "16",
        "--steps",
        "7",
        "--save-every",
        "7",
        "--timeout",
        "60",
    ]
    ended = torchrun(2, SMALL_RUN, *words, "--out", tmp_path)
    assert ended.code == 0, ended.err
    [folder] = tmp_path.iterdir()
    found = json.loads((folder / "run.json").read_text())
    assert "NCCL" in found["reason"]
    again = torchrun(2, SMALL_RUN, "--resume", folder, "--steps", "8", "--no-compare", "--no-profile")
    assert again.code == 0, again.err


@pytest.mark.gpu
def test_the_doctor_finds_gpus_sound(capsys, small_presets):
    assert doctor.main(["--devices", "cuda:0,cuda:0", "--batch-size", "4"]) == 0
    assert "Sound" in capsys.readouterr().out
