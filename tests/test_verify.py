"""The proof, and that it fails when it should: each deliberate mistake, each small corruption, each NaN."""

import math
import re
import shutil
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product
from typing import ClassVar

import pytest
import torch
from layouts import SPLIT, small
from quick import few, quick
from torch.utils._python_dispatch import TorchDispatchMode

from splitnet import verify
from splitnet.equality import STEPS, TOLERANCES, Comparison, Trial, attempt, compare, identical, images, tolerances
from splitnet.errors import UsageError
from splitnet.faults import FAULTS, check_has_place
from splitnet.network.execution import Execution
from splitnet.network.presets import preset
from splitnet.parallel import fake
from splitnet.parallel.exchange import LocalWay
from splitnet.parallel.placement import build
from splitnet.verify import main

F64 = TOLERANCES["float64"]


SIZE = 72
"""Side of the images of whole proofs: the smallest, by eights, that every preset takes."""

HAVE_PLACE = [
    ("alexnet", "reduce-scatter"),
    ("alexnet", "swap-halves"),
    ("alexnet", "lrn-across"),
    ("alexnet", "dropout-per-consumer"),
    ("alexnet-paper", "lrn-across"),
    ("alexnet-plain-pool", "reduce-scatter"),
    ("fashion", "reduce-scatter"),
    ("fashion", "swap-halves"),
    ("fashion", "dropout-per-consumer"),
]

HAVE_NO_PLACE = [
    ("fashion", None, "lrn-across", "no response norm"),
    ("alexnet-no-norm", None, "lrn-across", "no response norm"),
    ("fashion", "none", "reduce-scatter", "no row that all towers read"),
    ("alexnet", "none", "swap-halves", "no row that all towers read"),
    ("alexnet", "none", "dropout-per-consumer", "no dropped activation that two towers read"),
    ("alexnet", "conv3,fc6", "dropout-per-consumer", "no dropped activation that two towers read"),
    ("alexnet-isolated", None, "reduce-scatter", "no row that all towers read"),
    ("alexnet-isolated", None, "swap-halves", "no row that all towers read"),
]


@pytest.fixture(autouse=True)
def settings():
    """`main` sets PyTorch's for the whole process."""
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)
    cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.fixture
def prove(monkeypatch, capsys):
    """Runs the command on a sixteenth of a preset: exit status, stdout, stderr."""

    def tiny(name, towers, crosses):
        return small(name, towers, crosses).scaled(1 / 2, size=SIZE)

    monkeypatch.setattr(verify, "preset", tiny)

    def run(*words):
        code = main(list(words))
        return code, *capsys.readouterr()

    return run


# The command


@pytest.mark.parametrize("name", quick(SPLIT, "alexnet", "fashion"))
def test_each_preset_is_proven_on_fake_devices(prove, name):
    code, out, err = prove("--preset", name)
    assert (code, err) == (0, "")
    assert "Towers equal the whole network on fake:0" in out
    assert "Towers on fake:0, fake:1 and all on fake:0: equal bit for bit." in out
    assert "Towers on fake:0, fake:1 and all on cpu: equal bit for bit." in out


@pytest.mark.parametrize("crosses", quick(["all", "none", "conv2,fc7"], "conv2,fc7"))
def test_other_crossings_are_proven(prove, crosses):
    code, out, _ = prove("--crosses", crosses, "--devices", "cpu,cpu")
    assert code == 0
    assert "Towers on cpu, cpu and all on cpu: equal bit for bit." in out


@pytest.mark.slow
def test_four_towers_are_proven(prove):
    code, out, _ = prove("--preset", "alexnet", "--towers", "4", "--devices", "fake:0,fake:1,fake:0,fake:1")
    assert code == 0
    assert out.count("bit for bit") == 2


@pytest.mark.slow
def test_float32_is_proven_at_its_own_tolerances(prove):
    code, out, _ = prove("--preset", "alexnet", "--precision", "float32")
    assert code == 0
    assert "float32" in out
    assert "up to 0.01" in " ".join(out.split())


EXECUTIONS = [
    "--overlap",
    "--precision bf16",
    "--precision float32 --wire float16",
    "--wire bf16",
    "--precision bf16 --wire bf16 --overlap",
]


@pytest.mark.parametrize(
    ("how", "name", "devices"),
    quick(
        product(EXECUTIONS, ["alexnet", "fashion"], ["fake:0,fake:1", "cpu,cpu"]),
        *((how, "fashion", "cpu,cpu") for how in EXECUTIONS[::2]),
    ),
)
def test_every_execution_is_proven_alone_and_together(prove, name, devices, how):
    code, out, err = prove("--preset", name, "--devices", devices, *how.split())
    assert (code, err) == (0, ""), out
    assert "bit for bit" in out
    exact = how == "--overlap"
    words = " ".join(out.split())
    assert ("Towers equal the whole network" in words) == exact
    assert ("within the tolerances above (" in words) == (not exact)


def test_a_log_says_what_was_proven(prove):
    how = "--precision bf16 --wire float16 --overlap"
    _, out, _ = prove("--devices", "cpu,cpu", *how.split())
    assert out.splitlines()[0].endswith(" on cpu, cpu (as asked), bf16, float16 on the wire, overlap")
    words = " ".join(out.split())
    assert "relative to the norm, bf16, float16 on the wire, overlap" in words
    assert "within the tolerances above (bf16, float16 on the wire, overlap): the worst is " in words


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the compiler itself
@pytest.mark.slow
@pytest.mark.parametrize("how", few(["--compile", "--precision bf16 --wire bf16 --overlap --compile"], "--compile"))
def test_compiled_rows_are_proven_alone_and_with_all_else(prove, how):
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is no g++")
    code, out, _ = prove("--preset", "alexnet", "--devices", "cpu,cpu", *how.split())
    assert code == 0, out
    said = "agree with" if "bf16" in how else "equal"
    assert f"Towers {said} the whole network on cpu" in " ".join(out.split())


def test_a_wire_that_loses_more_than_it_should_is_found(prove, monkeypatch):
    """Its tolerances are wide, but a gradient that does not come home is wider."""
    monkeypatch.setattr(LocalWay, "returned", lambda self: 0 * self._finished("backward"))
    code, out, _ = prove("--preset", "fashion", "--wire", "bf16", "--overlap")
    assert code == 1
    assert "Towers do NOT agree with the whole network" in " ".join(out.split())


def excess(words):
    """How many times its tolerance the worst is."""
    [times] = re.findall(r"the worst is ([\d.e+-]+|infinitely many) times its tolerance", words)
    return math.inf if times == "infinitely many" else float(times)


@pytest.mark.parametrize(
    ("how", "fault"),
    quick(
        product(
            ["--precision float32", "--precision bf16", "--wire float16", "--precision bf16 --wire float16"],
            ["reduce-scatter", "swap-halves", "dropout-per-consumer"],
        ),
        ("--precision bf16", "reduce-scatter"),
        ("--precision bf16 --wire float16", "reduce-scatter"),
        ("--wire float16", "swap-halves"),
    ),
)
def test_a_deliberate_fault_is_found_within_wide_tolerances(prove, how, fault):
    code, out, _ = prove("--devices", "cpu,cpu", "--break", fault, *how.split())
    assert code == 1
    words = " ".join(out.split())
    assert re.search(r"\): found, (\S+|infinitely many) times the tolerance\.$", words), words
    assert excess(words) > 2


@pytest.mark.parametrize(
    ("precision", "wire", "as_in"),
    [
        ("float64", None, "float64"),
        ("float64", "float32", "float32"),
        ("float32", "float16", "tf32"),
        ("bf16", "float16", "bf16"),
        ("tf32", "bf16", "bf16"),
    ],
)
def test_the_wider_of_two_tolerances_holds(precision, wire, as_in):
    assert tolerances(precision, Execution(wire=wire)) == TOLERANCES[as_in]


def test_every_row_is_printed_the_worst_first(prove):
    _, out, _ = prove("--preset", "alexnet", "--devices", "cpu,cpu")
    table = [line.split() for line in out.splitlines() if line.strip().startswith(("conv", "fc"))]
    assert sorted(words[0] for words in table) == [f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7", "fc8"]
    excesses = [float(words[-1]) for words in table]
    assert excesses == sorted(excesses, reverse=True)
    assert 0 < excesses[0] < 1
    assert {words[0] for words in table if len(words) == 6} == {"fc6", "fc7"}  # those that drop units
    assert f"Differences over {STEPS} steps" in out


@pytest.mark.slow
def test_output_fits_80_columns_and_is_plain(prove):
    _, out, _ = prove("--preset", "alexnet", "--break", "swap-halves")
    assert max(map(len, out.splitlines()[1:])) <= 80  # the first says which devices, and is not broken
    assert "\x1b" not in out


@pytest.mark.parametrize(("name", "fault"), quick(HAVE_PLACE, ("alexnet", "lrn-across"), *HAVE_PLACE[-3::2]))
def test_a_deliberate_fault_is_found_a_thousandfold(prove, name, fault):
    code, out, _ = prove("--preset", name, "--break", fault)
    assert code == 1
    assert "Towers do NOT equal the whole network" in out
    words = " ".join(out.split())
    assert f"Broken on purpose ({fault}: " in words
    assert re.search(r"\): found, (\S+|infinitely many) times the tolerance\.$", words)
    assert excess(words) >= 1000


def test_every_fault_was_tried():
    assert {fault for _, fault in HAVE_PLACE} == set(FAULTS)


@pytest.mark.parametrize("fault", quick(["reduce-scatter", "swap-halves", "dropout-per-consumer"], "swap-halves"))
def test_a_fault_on_the_plain_cpu_is_found(prove, fault):
    code, out, _ = prove("--devices", "cpu,cpu", "--break", fault)
    assert code == 1
    assert "NOT equal in" in out  # nor is it what the towers compute together


def test_a_missing_reduce_scatter_shows_in_gradients_alone(prove):
    net = build(small("fashion"), devices=["cpu", "cpu"]).double()
    pixels, labels = images(net.architecture, 4, 0, torch.float64)
    sound = attempt(net, pixels, labels)
    wrong = attempt(verify.broken("reduce-scatter", build(net.architecture, devices=["cpu", "cpu"]).double(),
                                  net.exchange.devices), pixels, labels)  # fmt: skip
    assert torch.equal(sound.outputs["fc8"][0], wrong.outputs["fc8"][0])
    [conv1] = [row for row in compare(net.architecture, wrong, sound) if row.row == "conv1"]
    assert conv1.differences["gradient"] > 0.1


@pytest.mark.parametrize(("name", "crosses", "fault", "why"), HAVE_NO_PLACE)
def test_a_fault_without_its_place_is_refused(name, crosses, fault, why):
    with pytest.raises(UsageError) as refusal:
        check_has_place(fault, preset(name, 2, crosses))
    assert str(refusal.value) == f"--break {fault}: {name} has {why}"


BAD = {
    "--preset nonsense": ["--preset", "nonsense"],
    "--preset caffe": ["--devices", "alexnet-paper", "one piece on one device"],
    "--preset caffe --devices cpu,cpu": ["--devices cpu,cpu", "caffe", "alexnet-paper"],
    "--preset lenet": ["--towers 2", "lenet has one tower"],
    "--preset torchvision": ["--towers 2", "torchvision"],
    "--towers 1": ["--towers 1", "nothing to be compared with"],
    "--towers 3": ["--towers 3"],
    "--towers 0": ["--towers 0"],
    "--towers two": ["--towers", "two"],
    "--devices cpu": ["--towers 2", "cpu", "name a device for each"],
    "--devices cpu,cpu,cpu": ["--devices cpu,cpu,cpu", "3 devices"],
    "--devices fake:7,fake:0": ["--devices fake:7", "fake:0, fake:1"],
    "--devices cpu,gpu": ["--devices gpu"],
    "--crosses fc9": ["--crosses fc9", "fc6"],
    "--crosses conv1": ["--crosses conv1"],
    "--break lrn-across": ["--break lrn-across", "fashion has no response norm"],
    "--break everything": ["--break", "everything", "swap-halves"],
    "--precision float16": ["--precision", "float16"],
    "--precision tf32": ["--precision tf32", "fake:0 has no tf32"],
    "--wire int8": ["--wire", "int8", "float16"],
    "--compile": ["--compile", "fake:0"],
    "--break reduce-scatter --overlap": ["--break reduce-scatter --overlap", "without --overlap and --compile"],
    "--break lrn-across --preset alexnet --wire bf16": ["--break lrn-across --wire bf16", "than that may round"],
    "--break lrn-across --preset alexnet --precision bf16": ["--break lrn-across --precision bf16"],
    "--batch-size 0": ["--batch-size 0"],
    "--batch-size 1": ["--batch-size 1"],
    "--seed -1": ["--seed -1"],
    "--seed 18446744073709551616": ["--seed 18446744073709551616"],
    "--threads 0": ["--threads 0"],
    "--steps 3": ["--steps"],
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line(capsys, words):
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("splitnet: error: ")
    assert err.count("\n") == 1
    expected = BAD[words]
    if words == "--preset caffe":
        expected = ["caffe"] if "caffe" in err else ["--towers 2"]
    assert all(part in err for part in expected), err


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "prove", interrupted)
    try:
        code = main([])
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C came through")
    assert code == 130
    assert capsys.readouterr().err == ""


# Small corruptions


@cache
def whole():
    """What the whole network computes, with its table and what it is given."""
    table = small("fashion")
    given = images(table, 4, 0, torch.float64)
    return table, given, attempt(build(table, devices=["cpu"]).double(), *given)


@cache
def meddled(meddle=None):
    table, given, _ = whole()
    towers = build(table, devices=["fake:0", "fake:1"]).double()
    if meddle is not None:
        with torch.no_grad():
            meddle(towers)
    return attempt(towers, *given)


def trials(meddle=None):
    """The table, what its towers compute after `meddle(net)`, and what the whole network does."""
    table, _, reference = whole()
    return table, deepcopy(meddled(meddle)), deepcopy(reference)


def worst(table, found, reference, tolerances=F64):
    return max(row.excess(tolerances) for row in compare(table, found, reference))


def test_sound_towers_pass():
    assert worst(*trials()) <= 1


@pytest.mark.parametrize(
    ("row", "tower"),
    quick(product(["conv1", "conv4", "fc6", "fc7"], [0, 1]), ("conv1", 0), ("conv4", 1), ("fc7", 1)),
)
def test_one_weight_that_is_a_billionth_off_is_noticed(row, tower):
    def meddle(net):
        weight = net.hosted[tower][row].weight
        weight[(1, *[0] * (weight.dim() - 1))] += 1e-9

    table, found, reference = trials(meddle)
    by_row = {r.row: r for r in compare(table, found, reference)}
    assert by_row[row].excess(F64) > 1
    assert max(by_row[row].differences["weights"], by_row[row].differences["output"]) > F64["weights"]


def test_a_bias_on_the_last_row_is_noticed():
    def meddle(net):
        net.hosted[0]["fc8"].bias[9] += 1e-9

    assert worst(*trials(meddle)) > 1


def test_another_seed_of_dropout_is_noticed():
    def meddle(net):
        net.moment = replace(net.moment, seed=1)

    table, found, reference = trials(meddle)
    by_row = {r.row: r for r in compare(table, found, reference)}
    assert by_row["fc6"].excess(F64) == math.inf
    assert 0.4 < by_row["fc6"].differences["dropped"] < 0.6
    assert "dropped" not in by_row["conv1"].differences


def test_one_dropped_unit_is_noticed():
    table, found, reference = trials()
    mask = found.kept["fc7"][2]
    mask[1, 7] = ~mask[1, 7]
    assert worst(table, found, reference) == math.inf


def test_dropout_that_is_left_out_is_noticed():
    table, found, reference = trials()
    del found.kept["fc7"]
    assert worst(table, found, reference) == math.inf


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("kind", ["outputs", "gradients", "weights"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_what_is_not_a_number_fails_wherever_it_stands(kind, step, value, both):
    table, found, reference = two_trials()
    for trial in (found, reference) if both else (found,):
        held = getattr(trial, kind)
        tensor = held["fc7"][step] if kind == "outputs" else held["fc7.bias"]
        (tensor[step] if kind == "gradients" else tensor).view(-1)[-1] = value
    assert worst(table, found, reference) == math.inf


def two_trials():
    """A table and two equal trials, made by hand."""
    table = small("fashion")

    def trial():
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
        names = [f"{row.name}.{kind}" for row in table.rows() for kind in ("weight", "bias")]
        return Trial(
            {row.name: [draw(2, 5) for _ in range(STEPS)] for row in table.rows()},
            {name: [draw(4) for _ in range(STEPS)] for name in names},
            {name: draw(4) for name in names},
            {name: [draw(2, 5) > 0 for _ in range(STEPS)] for name in ("fc6", "fc7")},
        )

    return table, trial(), trial()


def test_equal_trials_differ_by_nothing():
    table, found, reference = two_trials()
    assert worst(table, found, reference) == 0
    assert identical(found, reference) == []


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("kind", ["outputs", "gradients"])
def test_a_difference_beyond_the_tolerance_fails_at_any_step(kind, step):
    table, found, reference = two_trials()
    held = getattr(found, kind)["fc6" if kind == "outputs" else "fc6.bias"]
    held[step].view(-1)[0] += 3e-12 * held[step].norm()
    assert 1 < worst(table, found, reference) < 5


@pytest.mark.parametrize("name", ["fc6.weight", "fc6.bias"])
def test_a_difference_in_either_parameter_fails(name):
    table, found, reference = two_trials()
    found.weights[name][0] += 1e-10
    assert worst(table, found, reference) > 1
    assert identical(found, reference) == [f"weights {name}"]


def test_a_difference_from_zero_is_not_divided_by_it():
    table, found, reference = two_trials()
    reference.gradients["conv1.weight"][1].zero_()
    found.gradients["conv1.weight"][1].zero_()
    assert worst(table, found, reference) == 0
    found.gradients["conv1.weight"][1][0] = 1e-6
    assert worst(table, found, reference) > 1


def test_excess_is_the_worst_in_multiples_of_its_tolerance():
    row = Comparison("conv1", {"output": 5e-13, "gradient": 2e-12, "weights": 0.0, "dropped": 0.0})
    assert row.excess(F64) == pytest.approx(2.0)
    assert Comparison("conv1", {"output": 0.0, "dropped": 1e-9}).excess(F64) == math.inf
    assert Comparison("conv1", {"output": math.nan, "gradient": 0.0}).excess(F64) == math.inf
    assert Comparison("conv1", {"gradient": 0.0, "output": math.nan}).excess(F64) == math.inf


# Bit for bit


def flip_last_bit(tensor):
    tensor.view(torch.int64).view(-1)[-1] ^= 1


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize(("kind", "name"), [("outputs", "conv3"), ("gradients", "conv3.bias")])
def test_a_single_bit_is_noticed(kind, name, step):
    _, found, reference = two_trials()
    flip_last_bit(getattr(found, kind)[name][step])
    assert identical(found, reference) == [f"{kind.removesuffix('s')} {name}"]


def test_a_single_bit_of_the_weights_is_noticed():
    _, found, reference = two_trials()
    flip_last_bit(found.weights["fc8.bias"])
    assert identical(found, reference) == ["weights fc8.bias"]


def test_one_unit_dropped_otherwise_is_noticed():
    _, found, reference = two_trials()
    found.kept["fc6"][0][1, 4] ^= True
    assert identical(found, reference) == ["kept fc6"]


def test_the_sign_of_a_zero_is_a_bit():
    _, found, reference = two_trials()
    found.outputs["conv3"][0].view(-1)[0], reference.outputs["conv3"][0].view(-1)[0] = 0.0, -0.0
    assert identical(found, reference) == ["output conv3"]


@pytest.mark.parametrize("lacking", [0, 1], ids=["found", "reference"])
def test_a_step_or_a_row_that_is_not_there_is_noticed(lacking):
    _, *both = two_trials()
    both[lacking].outputs["fc6"].pop()
    assert identical(*both) == ["output fc6"]
    _, *both = two_trials()
    del both[lacking].kept["fc6"]
    assert identical(*both) == ["kept fc6"]
    _, *both = two_trials()
    del both[lacking].weights["fc6.bias"]
    assert identical(*both) == ["weights fc6.bias"]


def test_not_a_number_is_not_proof_of_anything():
    _, found, reference = two_trials()
    for trial in (found, reference):
        trial.outputs["conv3"][0].view(-1)[0] = math.nan
    assert identical(found, reference) == ["output conv3"]


def test_a_link_that_loses_a_bit_is_noticed():
    table = small("fashion")
    pixels, labels = images(table, 4, 0, torch.float64)

    def trial(devices):
        return attempt(build(table, devices=devices).double(), pixels, labels)

    sound = trial(["cpu", "cpu"])
    assert identical(trial(["fake:0", "fake:1"]), sound) == []
    with fake.fault("flip", source="fake:0", target="fake:1"):
        wrong = trial(["fake:0", "fake:1"])
    assert identical(wrong, sound)


# What is compared


def test_a_trial_holds_every_row_step_and_parameter():
    table, found, reference = trials()
    for trial in (found, reference):
        names = [row.name for row in table.rows()]
        assert list(trial.outputs) == names
        assert set(trial.gradients) == set(trial.weights) == {f"{n}.{k}" for n in names for k in ("weight", "bias")}
        assert {len(steps) for steps in [*trial.outputs.values(), *trial.gradients.values()]} == {STEPS}
        assert {name: len(steps) for name, steps in trial.kept.items()} == {"fc6": STEPS, "fc7": STEPS}
        assert all(t.device.type == "cpu" and t.dtype == torch.float64 for t in trial.weights.values())
    for row in table.rows():
        side = row.outputs[-1][1]
        shape = (4, row.layer.out, side, side) if row.layer.kernel else (4, row.layer.out)
        assert found.outputs[row.name][0].shape == shape
        assert found.gradients[f"{row.name}.weight"][0].shape == row.weight_shape


def test_every_step_drops_other_units_and_moves_the_weights():
    _, found, _ = trials()
    one, two, three = found.kept["fc6"]
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)
    first, second, _ = found.gradients["conv1.weight"]
    assert first.norm() > 0
    assert not torch.equal(first, second)


def test_a_trial_leaves_no_hook_behind():
    net = build(small("fashion"), devices=["cpu", "cpu"]).double()
    pixels, labels = images(net.architecture, 4, 0, torch.float64)
    attempt(net, pixels, labels)
    blocks = [block for tower in net.hosted for block in tower.children()]
    assert not any(block._forward_hooks for block in blocks)
    assert not any("kept" in vars(block) for block in blocks)


@pytest.mark.parametrize("name", ["alexnet", "fashion"])
def test_images_have_the_presets_own_scale(name):
    table = small(name)
    pixels, labels = images(table, 4, 0, torch.float64)
    assert pixels.shape == (4, table.channels, table.size, table.size)
    assert pixels.dtype == torch.float64
    assert labels.tolist() == [0, 1, 2, 3]
    if name == "alexnet":
        assert pixels.mean().abs() < 1e-9
        assert 20 < pixels.std() < 100
    else:
        assert 0 <= pixels.min() < pixels.max() <= 1


@pytest.mark.parametrize("name", quick(SPLIT, "alexnet", "alexnet-plain-pool"))
def test_no_operation_lacks_a_deterministic_form_on_cuda(name):
    """On CUDA, PyTorch refuses these while algorithms must be deterministic (torch.use_deterministic_algorithms)."""
    lacking = re.compile(r"(avg_pool3d|max_pool3d\w*|adaptive_\w+|fractional_\w+|upsample_\w+|\w+_pad[123]d)_backward")

    class Seen(TorchDispatchMode):
        names: ClassVar[set[str]] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.__name__.partition(".")[0])
            return func(*args, **kwargs or {})

    table = small(name)
    with Seen() as seen:
        attempt(build(table, devices=["cpu", "cpu"]).double(), *images(table, 2, 0, torch.float64))
    assert "convolution_backward" in seen.names
    assert sorted(filter(lacking.fullmatch, seen.names)) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", few([1, 2], 2))
@pytest.mark.parametrize(
    "how", few(["--precision float32 --wire float16", "--wire bf16"], "--precision float32 --wire float16")
)
def test_a_wire_is_proven_on_alexnets_own_images(capsys, monkeypatch, how, width):
    """What rounding flips grows with the network: narrow ones on small images hide it."""
    monkeypatch.setattr(verify, "preset", lambda *asked: preset(*asked).scaled(Fraction(1, width)))
    assert main(["--preset", "alexnet", "--batch-size", "2", *how.split()]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", few([1, 4], 4))
def test_alexnet_on_its_own_images_is_proven(capsys, monkeypatch, width):
    """At its full width, and with a channel of four."""
    monkeypatch.setattr(verify, "preset", lambda *asked: preset(*asked).scaled(Fraction(1, width)))
    assert main(["--preset", "alexnet", "--batch-size", "2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Towers equal the whole network on fake:0" in text
    assert "Towers on fake:0, fake:1 and all on fake:0: equal bit for bit" in text
    assert "Towers on fake:0, fake:1 and all on cpu: equal bit for bit" in text


def test_exact_kernels_are_for_the_proof_alone(prove):
    prove("--preset", "fashion")
    assert not torch.are_deterministic_algorithms_enabled()
    with verify.exact_kernels():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.allow_tf32
