"""`python -m splitnet.run`, end to end: what it prints, what it writes, and what it refuses."""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from layouts import small
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from splitnet import job, learning, progress, reporting, run
from splitnet.comparison import WARM_UP
from splitnet.compiling import without_cuda_notice
from splitnet.errors import UsageError
from splitnet.measure import page_tables, timeline
from splitnet.measure.records import read_steps
from splitnet.measure.summary import summarise
from splitnet.network.presets import preset
from splitnet.network.weights import draw
from splitnet.parallel import fake
from splitnet.parallel.placement import build
from splitnet.training import fashion
from splitnet.training.data import load
from splitnet.training.loop import DivergedError, Step, evaluate

pytestmark = pytest.mark.slow  # whole runs: `make fast` leaves them out

ROOT = Path(__file__).parents[1]
ROUNDS = 2
LENET = ["--preset", "lenet", "--towers", "1", "--data", "fashion-mnist-small", "--batch-size", "8"]
SMALL = ["--data", "fashion-mnist-small", "--batch-size", "4"]


@dataclass
class Ran:
    """A run that is over."""

    code: int
    out: str
    err: str
    folder: Path | None

    def json(self, name):
        return strict((self.folder / f"{name}.json").read_text())

    def records(self, kind):
        records = [strict(line) for line in (self.folder / "steps.jsonl").read_text().splitlines()]
        return [record for record in records if record["kind"] == kind]


def strict(text):
    """JSON as other languages read it: without NaN and Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def save(state, path):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def started(words, out):
    """Run the command in this process."""
    fake.install(2)
    fake.reset()
    threads = torch.get_num_threads()
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            code = run.main([*words, "--out", str(out)])
        except KeyboardInterrupt:
            pytest.fail("Ctrl-C came through")
        finally:
            torch.set_num_threads(threads)
    folders = sorted(out.iterdir()) if out.is_dir() else []
    return Ran(code, said.getvalue(), complained.getvalue(), folders[-1] if folders else None)


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Runs the command with a short comparison; its folder is below tmp_path/runs."""
    monkeypatch.setattr(run, "ROUNDS", ROUNDS)
    monkeypatch.setattr(learning, "SHORT_TEST", 40)
    return lambda *words: started(words, tmp_path / "runs")


def shrink(monkeypatch):
    """An eighth of each preset, on images of 96 pixels."""
    monkeypatch.setattr(job, "preset", lambda name, towers, crosses: small(name, towers, crosses))


# A whole run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two towers on two fake devices, three steps, one test, and the comparison."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr(run, "ROUNDS", ROUNDS)
        patch.setattr("splitnet.comparison.OtherLoad", lambda: SimpleNamespace(cores=lambda: 0.75))
        return started([*SMALL, "--steps", "3", "--seed", "5"], tmp_path_factory.mktemp("out") / "new" / "runs")


TABLE = small("fashion")


def test_it_ends_well_and_names_its_folder(whole):
    assert (whole.code, whole.err) == (0, "")
    assert re.fullmatch(r"\d{8}-\d{6}-fashion-2x2", whole.folder.name)
    assert whole.out.splitlines()[-1] == f"Run folder: {whole.folder}"
    files = {
        "learned.json",
        "compare.json",
        "run.json",
        "steps.jsonl",
        "tensorboard",
        "trace.json.gz",
        "report.md",
        "report.html",
        "pictures",
    }
    assert {path.name for path in whole.folder.iterdir()} == files


def test_all_files_carry_the_schemas_version(whole):
    assert whole.json("run")["schema"] == whole.json("compare")["schema"] == 1
    assert {r["schema"] for r in read_steps(whole.folder / "steps.jsonl")} == {1}


def test_run_json_is_the_options_and_what_became_of_them(whole):
    found = whole.json("run")
    assert found["status"] == "finished"
    assert found["options"]["seed"] == 5
    assert found["options"]["batch_size"] == 4
    assert found["options"]["lr"] is None
    assert set(found["options"]) == set(job.RunOptions.__dataclass_fields__)
    assert [d["device"] if isinstance(d, dict) else d for d in found["devices"]] == ["fake:0", "fake:1"]
    assert "no GPU" in found["reason"]
    assert found["steps"] == 3
    assert found["parameters"] == TABLE.parameters
    assert found["bytes_exchanged_a_step"] == TABLE.bytes_exchanged(4)
    assert found["skipped"] == {}
    assert {"torch", "numpy"} <= set(found["packages"])
    assert {"command", "commit", "load", "threads", "machine"} <= set(found)


def test_every_step_and_test_has_its_record(whole):
    steps, [test] = whole.records("step"), whole.records("test")
    assert [s["step"] for s in steps] == [0, 1, 2]
    assert all(s["images"] == 4 and s["seconds"] > 0 for s in steps)
    assert (test["step"], test["images"]) == (3, 500)
    assert read_steps(whole.folder / "steps.jsonl")[-1]["kind"] == "test"


def test_four_layouts_are_compared(whole):
    found = whole.json("compare")
    assert (found["base"], found["rounds"], found["warm_up"]) == ("whole", ROUNDS, WARM_UP)
    assert found["other_load"] == 0.75
    towers, one, replicas, dense = found["layouts"]
    assert [c["layout"] for c in found["layouts"]] == ["towers", "whole", "replicas", "dense"]
    pair = ["fake:0", "fake:1"]
    assert [c["devices"] for c in found["layouts"]] == [pair, ["fake:0"], pair, ["fake:0"]]
    assert [c.get("replicas") for c in found["layouts"]] == [None, None, 2, None]
    assert towers["parameters"] == one["parameters"] == replicas["parameters"] == TABLE.parameters
    assert dense["parameters"] > one["parameters"]
    assert (one["loss_differences"], dense["loss_differences"]) == (None, None)
    assert max(towers["loss_differences"]) < 1e-3
    assert max(replicas["loss_differences"]) < 1e-3
    for column in found["layouts"]:
        assert column["step_ms"]["n"] == ROUNDS
        assert column["step_ms"]["least"] <= column["step_ms"]["median"] <= column["step_ms"]["greatest"]
        assert len(column["losses"]) == WARM_UP + ROUNDS
    assert one["ratio"] == {"median": 1.0, "least": 1.0, "greatest": 1.0, "n": ROUNDS, "low": 1.0, "high": 1.0}


def test_bytes_are_measured_as_derived(whole):
    towers, *others = whole.json("compare")["layouts"]
    for entry in towers["exchanged"]:
        assert entry["measured"] == entry["derived"]
    assert {e["row"]: e["derived"] for e in towers["exchanged"]} == {
        row.name: sum(t.bytes for t in row.transfers(4)) for row in TABLE.rows() if row.crosses
    }
    assert sum(e["derived"] for e in towers["exchanged"]) == whole.json("run")["bytes_exchanged_a_step"]
    size = 2 * 4 * TABLE.parameters  # each replica's half of the other's gradients, and half of the sums back
    gradients = {"row": "gradients", "measured": size, "derived": size}
    assert [other["exchanged"] for other in others] == [[], [gradients], []]


def test_memory_parts_add_up_to_the_peak(whole):
    towers, one, replicas, dense = whole.json("compare")["layouts"]
    for column in (towers, one, replicas, dense):
        for memory in column["memory"].values():
            assert memory["peak"] == sum(memory[k] for k in ("parameters", "gradients", "optimizer", "activations"))
            assert min(memory.values()) > 0
            assert memory["gradients"] == memory["parameters"]
            assert 2 * memory["parameters"] <= memory["optimizer"] < 2 * memory["parameters"] + 1000  # Adam
        held = sum(m["parameters"] for m in column["memory"].values())
        assert held == 4 * column["parameters"] * column.get("replicas", 1)
    assert {d: m["parameters"] for d, m in towers["memory"].items()} == {
        f"fake:{tower}": 4 * TABLE.parameters_on(tower) for tower in range(2)
    }
    assert max(m["peak"] for m in towers["memory"].values()) < one["memory"]["fake:0"]["peak"]


def test_the_comparison_makes_the_steps_that_training_made(whole):
    towers = whole.json("compare")["layouts"][0]
    assert [s["loss"] for s in whole.records("step")] == towers["losses"][:3]


def test_the_tables_tell_what_the_files_hold(whole):
    text = " ".join(whole.out.split())
    [test] = whole.records("test")
    assert whole.out.startswith("fashion, 2 towers on fake:0, fake:1 (no GPU found")
    assert "embedded subset of Fashion-MNIST: 2,000 training and 500 test images" in whole.out
    assert f"{test['loss']:.4f} {test['accuracy']:.4f}" in text
    assert f"loss {whole.records('step')[0]['loss']:.4f} at the first" in text
    steps = whole.records("step")
    assert [step["warms_up"] for step in steps] == [True, False, False]
    speed = sum(step["images"] for step in steps[1:]) / sum(step["seconds"] for step in steps[1:])
    assert f"({speed:,.1f} images/s after the first step, " in text
    for row in TABLE.rows():
        assert row.name in text
        if row.crosses:
            size = f"{sum(t.bytes for t in row.transfers(4)):,}"
            assert f"{row.name} {size} {size}" in text  # measured, derived
    assert f"{TABLE.parameters:,}" in text
    assert "as the table derives, to the byte" in text
    for word in ("images/s", "step ms", "emulated", "peak MiB fake:1", "optimizer", "activations", "loss difference"):
        assert word in text


def test_output_is_plain_and_fits_80_columns(whole):
    assert "\x1b" not in whole.out
    assert "\r" not in whole.out
    devices, data, *rest, folder = whole.out.splitlines()  # these three are never broken
    assert max(map(len, rest)) <= 80
    assert not any("…" in line for line in rest)
    assert len(devices) < 160
    assert len(data) < 160
    assert folder.startswith("Run folder: ")


def test_copies_between_devices_are_all_known(whole):
    tested = 500 // 4  # forward only
    handed = 3 * 2 * 7 + tested * 7  # conv3, fc6, fc7 both ways and fc8 one way
    assert f"all {handed:,} copies between devices" in " ".join(whole.out.split())


# Other runs


def test_one_tower_has_nothing_to_exchange(go):
    ran = go(*LENET, "--steps", "2")
    assert (ran.code, ran.err) == (0, "")
    assert [c["exchanged"] for c in ran.json("compare")["layouts"]] == [[]]
    assert ran.json("run")["bytes_exchanged_a_step"] == 0
    assert "44,426" in ran.out
    assert max(map(len, ran.out.splitlines()[2:-1])) <= 80


@pytest.mark.parametrize("devices", ["fake:1,fake:0", "fake:0,cpu", "fake:0,fake:0", "fake:1", "cpu,cpu"])
def test_towers_run_wherever_they_are_put(go, monkeypatch, devices):
    shrink(monkeypatch)
    ran = go(*SMALL, "--steps", "1", "--devices", devices)
    assert (ran.code, ran.err) == (0, "")
    assert ran.json("run")["status"] == "finished"
    for column in ran.json("compare")["layouts"]:
        emulated = all(device.startswith("fake") for device in column["devices"])
        assert (column["device_step_ms"] is not None) == emulated
        if emulated:
            assert 0 < column["device_step_ms"]["median"] <= 1.01 * column["step_ms"]["median"]
    exchanged = "," in devices
    assert (ran.json("run")["bytes_exchanged_a_step"] > 0) == exchanged
    assert (f"{TABLE.bytes_exchanged(4):,}" in ran.out) == exchanged
    found = summarise(ran.folder)
    bytes_, said = page_tables.exchanges(found)
    assert {row[-1] for row in bytes_.rows} <= {"yes"}, said
    assert ("share a device" in said) == (devices in ("fake:0,fake:0", "cpu,cpu"))
    assert {m.name.partition(".")[2] for m in found.metrics if m.name.startswith("idle_share.")} <= {
        entry["device"] if entry["device"] != "cpu" else "cpu:0" for entry in found.run["devices"]
    }
    assert ("exchanges take" in found.verdict) == (devices == "fake:1,fake:0")


@pytest.mark.slow
def test_the_comparison_starts_from_the_weights_given(go, monkeypatch, tmp_path):
    shrink(monkeypatch)
    save(build(TABLE, devices=["cpu"], seed=9).whole_state_dict(), tmp_path / "w.safetensors")
    words = ("--steps", "2", "--weights", str(tmp_path / "w.safetensors"))
    with_weights = go(*SMALL, *words)
    assert with_weights.code == 0
    towers, whole, replicas, _ = with_weights.json("compare")["layouts"]
    assert [s["loss"] for s in with_weights.records("step")] == towers["losses"][:2]
    assert max(*towers["loss_differences"], *replicas["loss_differences"]) < 1e-3
    assert whole["losses"][0] != go(*SMALL, "--steps", "2").json("compare")["layouts"][1]["losses"][0]


def test_a_wrong_device_is_told_before_data_is_fetched(go, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "_download", lambda _: pytest.fail("data was fetched"))
    (tmp_path / "empty").mkdir()
    ran = go("--data-dir", str(tmp_path / "empty"), "--devices", "cuda:98,cuda:99")
    assert ran.code == 2
    assert "--devices cuda:98" in ran.err


def test_the_default_is_30_steps():
    assert job.RunOptions().limits == {"epochs": None, "steps": 30}
    assert job.RunOptions(epochs=2).limits == {"epochs": 2, "steps": None}
    assert job.RunOptions(steps=0).limits == {"epochs": None, "steps": 0}


def test_no_steps_only_test(go):
    ran = go(*LENET, "--steps", "0")
    assert ran.code == 0
    assert ran.records("step") == []
    [test] = ran.records("test")
    assert (test["step"], test["epoch"], test["images"]) == (0, 0, 500)
    assert "Trained" not in ran.out
    assert not (ran.folder / "compare.json").exists()  # it would train


def test_without_the_comparison_there_is_none(go):
    ran = go(*LENET, "--steps", "1", "--no-compare")
    assert ran.code == 0
    assert not (ran.folder / "compare.json").exists()
    assert "warm-up" not in ran.out


def test_each_epoch_is_tested(go):
    ran = go("--preset", "lenet", "--towers", "1", "--data", "synthetic", "--batch-size", "200", "--epochs", "2",
             "--no-compare")  # fmt: skip
    assert [s["images"] for s in ran.records("step")] == [200, 200, 112] * 2
    assert [(t["step"], t["epoch"], t["images"]) for t in ran.records("test")] == [(3, 1, 128), (6, 2, 128)]
    kinds = [r["kind"] for r in read_steps(ran.folder / "steps.jsonl")]
    assert kinds == (["step"] * 3 + ["test"]) * 2


def test_steps_beyond_an_epoch_are_tested_at_its_end_and_at_theirs(go):
    ran = go("--preset", "lenet", "--towers", "1", "--data", "synthetic", "--batch-size", "300", "--steps", "3",
             "--no-compare")  # fmt: skip
    assert [(t["step"], t["epoch"], t["images"]) for t in ran.records("test")] == [(2, 1, 128), (3, 2, 128)]


@pytest.mark.slow
def test_two_runs_in_one_process_are_audited_apart(tmp_path, monkeypatch):
    shrink(monkeypatch)
    words = [*SMALL, "--steps", "1", "--no-compare", "--out", str(tmp_path / "runs")]
    fake.install(2)
    torch.ones(3, device="fake:0").to("fake:1")  # somebody else's
    assert run.main(words) == 0
    assert run.main(words) == 0


def test_the_same_seed_is_the_same_run(go):
    first, again, other = (go(*LENET, "--steps", "3", "--no-compare", "--seed", seed) for seed in "334")
    losses = [[r["loss"] for r in ran.records("step") + ran.records("test")] for ran in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]
    assert len({ran.folder for ran in (first, again, other)}) == 3


def test_weights_come_back_as_they_were_saved(go, tmp_path):
    net = build("lenet", towers=1, devices=["cpu"], seed=77)
    save_file(net.whole_state_dict(), tmp_path / "lenet.safetensors")
    ran = go(*LENET, "--steps", "0", "--weights", str(tmp_path / "lenet.safetensors"), "--no-compare")
    expected = evaluate(net, load("fashion-mnist-small", size=28).test, batch_size=8)
    [test] = ran.records("test")
    assert (test["loss"], test["accuracy"]) == (expected.loss, expected.accuracy)
    assert f"Weights from {tmp_path / 'lenet.safetensors'}." in ran.out


def test_any_layout_reads_the_same_weights(go, tmp_path, monkeypatch):
    shrink(monkeypatch)
    save(build(TABLE, devices=["cpu"], seed=77).whole_state_dict(), tmp_path / "w.safetensors")
    words = ["--data", "fashion-mnist-small", "--batch-size", "64", "--steps", "0", "--no-compare"]
    words += ["--weights", str(tmp_path / "w.safetensors")]
    losses = [go(*words, "--devices", d).records("test")[0]["loss"] for d in ("fake:0,fake:1", "cpu,cpu", "cpu")]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_a_bar_shows_loss_accuracy_and_speed():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, legacy_windows=False)
    with progress.progress_bar(console, 3) as show:
        show(Step(0, 0, 2.345678, 0.25, 64, 0.5))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "loss 2.3457 · accuracy 0.250 · 128.0 images/s" in text
    assert "1/3" in text


# Images in folders


@pytest.fixture
def pictures(tmp_path):
    """Two classes of four images, in train/ and in val/."""
    root = tmp_path / "pictures"
    for place, path in enumerate(root / s / c / f"{i}.png" for s in ("train", "val") for c in "ab" for i in range(4)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (10 * place, 99, 200)).save(path)
    return root


def from_folder(root):
    return ["--preset", "lenet", "--towers", "1", "--data", "imagefolder", "--data-dir", str(root), "--batch-size", "3"]


def test_a_broken_image_is_skipped_counted_and_reported(go, pictures):
    (pictures / "train/a/1.png").write_bytes(b"no image")
    ran = go(*from_folder(pictures), "--epochs", "2")
    assert (ran.code, ran.err) == (0, "")
    steps = ran.records("step")
    assert sum(s["images"] for s in steps) == 2 * 7
    sizes = [step["images"] for step in steps]
    assert [step["warms_up"] for step in steps] == [size not in sizes[:i] for i, size in enumerate(sizes)]
    assert f"images/s without the {len({*sizes})} steps that warm up, " in " ".join(ran.out.split())
    assert list(ran.json("run")["skipped"]) == [str(pictures / "train/a/1.png")]
    assert re.search(r"Skipped 1 broken image\b", ran.out)
    assert str(pictures / "train/a/1.png") in "".join(ran.out.split("\n"))
    assert sum(n["measured"] for c in ran.json("compare")["layouts"] for n in c["exchanged"]) == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_of_broken_images_alone_is_one_line(go, pictures, split):
    for path in (pictures / split).rglob("*.png"):
        path.write_bytes(b"no image")
    ran = go(*from_folder(pictures), "--epochs", "1")
    assert ran.code == 2
    assert re.fullmatch(
        rf"splitnet: error: --data-dir \S+: none of the 8 images in \S+/{split} can be read.*\n", ran.err
    )
    assert ran.folder is None


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("ab", ""),
        ("ax", "class 1 is 'b' here, 'x' there; they are taken for the same classes"),
        ("ba", "class 0 is 'a' here, 'b' there: the same names in another order"),
    ],
)
def test_weights_of_classes_of_other_names(go, pictures, tmp_path, names, said):
    """In another order they are refused: each answer would be taken for another class."""
    table = preset("lenet", 1).adapted(channels=3, classes=2)
    save_file(draw(table, 0), tmp_path / "w.safetensors", {"splitnet": json.dumps({"classes": list(names)})})
    ran = go(*from_folder(pictures), "--weights", str(tmp_path / "w.safetensors"), "--steps", "0")
    assert (ran.code, ran.folder is None) == ((2, True) if names == "ba" else (0, False))
    told = ran.err if names == "ba" else ran.out
    assert said in told
    assert len([line for line in told.splitlines() if "here, " in line]) == bool(said)


def test_weights_of_a_checkpoint_have_its_runs_names_of_classes(go, pictures):
    first = go(*from_folder(pictures), "--steps", "1", "--save-every", "1", "--no-compare", "--no-profile")
    path = first.folder / "checkpoints" / "step-0000000001" / "weights.safetensors"
    words = [*from_folder(pictures), "--weights", str(path), "--steps", "0"]
    assert "Names of classes" not in go(*words).out
    record = first.json("run") | {"classes": ["b", "a"]}
    (first.folder / "run.json").write_text(json.dumps(record))
    assert "class 0 is 'a' here, 'b' there" in go(*words).err


# Bad input


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """Files to point at, and no network."""

    def no_download(_):
        raise OSError("no network")

    monkeypatch.setattr(fashion, "_download", no_download)
    for name in (
        "empty",
        "corrupt",
        "short",
        "one-class/train/a",
        "one-class/val/a",
        "no-val/train/a",
        "no-val/train/b",
    ):
        (tmp_path / name).mkdir(parents=True)
    for name in ("corrupt", "short"):
        shutil.copytree(fashion.EMBEDDED, tmp_path / name, dirs_exist_ok=True)
    labels = tmp_path / "corrupt" / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(b"no gzip")
    (tmp_path / "short" / "train-images-idx3-ubyte.gz").unlink()
    (tmp_path / "file").write_text("text")
    (tmp_path / "machine.json").write_text('{"float32": 1e12, "memory_bandwidth": 1e11, "memory": 1e9}')
    (tmp_path / "text.safetensors").write_text("no weights")
    lenet = build("lenet", towers=1, devices=["cpu"])
    save(lenet.whole_state_dict(), tmp_path / "lenet.safetensors")
    wide = {**lenet.whole_state_dict(), "fc3.weight": torch.zeros(120, 400)}
    save(wide, tmp_path / "wide.safetensors")
    return tmp_path


L = "--preset lenet --towers 1 --data fashion-mnist-small"

BAD = [
    ("--preset vgg", "--preset", "vgg", "fashion"),
    ("--preset lenet", "--towers 2", "lenet has one tower"),
    ("--preset torchvision", "--towers 2", "torchvision"),
    ("--preset alexnet-isolated --towers 1", "--towers 1", "two"),
    ("--towers 3", "--towers 3", "conv2 has 256 channels", "fashion takes 1, 2, 4, 8"),
    ("--towers 0", "--towers 0", "at least 1"),
    ("--towers x", "--towers", "x"),
    ("--towers", "--towers", "expected one argument"),
    ("--crosses fc9", "--crosses fc9", "conv2, conv3"),
    ("--crosses conv1", "--crosses conv1", "images"),
    ("--devices cuda:99,cuda:0", "--devices cuda:99"),
    ("--devices fake:7,fake:0", "--devices fake:7", "fake:0, fake:1"),
    ("--devices fake:0,lazy:1", "--devices lazy:1", "no such kind"),
    (f"{L} --weights {300 * 'w'}", "too long"),
    (f"--data-dir {300 * 'd'}", "too long"),
    ("--devices tpu,cpu", "--devices tpu"),
    ("--devices cpu:1,cpu", "--devices cpu:1"),
    ("--devices meta,meta", "--devices meta"),
    ("--devices cpu,cpu,cpu", "--devices cpu,cpu,cpu", "3 devices for --towers 2"),
    ("--towers 1 --devices cpu,cpu", "--devices cpu,cpu", "2 devices for --towers 1"),
    ("--preset caffe --devices cpu,cpu", "--devices cpu,cpu", "alexnet-paper"),
    ("--batch-size 0", "--batch-size 0", "at least 1"),
    ("--batch-size -4", "--batch-size -4"),
    ("--batch-size 1.5", "--batch-size", "1.5"),
    ("--epochs 0", "--epochs 0"),
    ("--steps -1", "--steps -1"),
    ("--epochs 1 --steps 5", "--steps 5", "--epochs 1"),
    ("--optimizer lion", "--optimizer", "lion", "adam"),
    ("--lr nan", "--lr nan"),
    ("--lr inf", "--lr inf"),
    ("--lr 0", "--lr 0"),
    ("--lr -0.1", "--lr -0.1"),
    ("--lr fast", "--lr", "fast"),
    ("--seed -1", "--seed -1"),
    ("--seed 18446744073709551616", "--seed 18446744073709551616"),
    ("--threads 0", "--threads 0"),
    ("--threads 99999999999", "--threads 99999999999"),
    ("--data cifar", "--data", "cifar", "fashion-mnist"),
    ("--data fashion-mnist --data-dir {tmp}/nowhere", "--data-dir {tmp}/nowhere", "no such folder"),
    ("--data fashion-mnist --data-dir {tmp}/file", "--data-dir {tmp}/file"),
    ("--data fashion-mnist --data-dir {tmp}/empty", "--data-dir {tmp}/empty", "train-images-idx3-ubyte.gz", "download"),
    ("--data fashion-mnist --data-dir {tmp}/short", "{tmp}/short", "train-images-idx3-ubyte.gz", "download"),
    ("--data fashion-mnist --data-dir {tmp}/corrupt", "{tmp}/corrupt/t10k-labels-idx1-ubyte.gz", "downloaded again"),
    ("--data synthetic --data-dir {tmp}/empty", "--data-dir {tmp}/empty", "synthetic"),
    ("--data imagefolder", "--data imagefolder", "--data-dir"),
    ("--data imagefolder --data-dir {tmp}/nowhere", "--data-dir {tmp}/nowhere", "train/"),
    ("--data imagefolder --data-dir {tmp}/empty", "--data-dir {tmp}/empty", "train/"),
    ("--data imagefolder --data-dir {tmp}/one-class", "--data-dir {tmp}/one-class", "2 or more classes"),
    ("--data imagefolder --data-dir {tmp}/no-val", "--data-dir {tmp}/no-val", "val/"),
    (f"{L} --weights {{tmp}}/nowhere", "--weights {tmp}/nowhere", "no such file"),
    (f"{L} --weights {{tmp}}/text.safetensors", "--weights {tmp}/text.safetensors", "not a safetensors file"),
    (f"{L} --weights {{tmp}}/empty", "--weights {tmp}/empty"),
    (f"{L} --weights {{tmp}}/wide.safetensors", "fc3.weight is (120, 400), not (120, 256)"),
    (
        "--data synthetic --weights {tmp}/lenet.safetensors",
        "lenet.safetensors",
        "conv1.weight is (6, 1, 5, 5)",
        "fashion",
    ),
    ("--precision int8", "--precision", "int8", "tf32"),
    (f"{L} --devices cpu --precision tf32", "--precision tf32: cpu has no tf32"),
    ("--precision tf32", "--precision tf32: fake:0 has no tf32"),
    ("--wire int8", "--wire", "int8", "float16"),
    ("--compile", "--compile: fake:0 computes operation by operation"),
    ("--machine gtx9000", "--machine gtx9000: no such machine or file", "gtx580-pcie2", "h100-nvlink4"),
    ("--machine {tmp}/machine.json", "--machine {tmp}/machine.json: link is missing"),
    ("--machine " + 300 * "g", "gg: no such machine or file", "gtx580-pcie2"),
    (
        "--devices fake:0,fake:0 --machine gtx580-pcie2",
        "here 2 towers share 1 (fake:0, fake:0)",
        "a device for each",
    ),
    ("--machine {tmp}/no.json", "--machine {tmp}/no.json: cannot be read"),
    ("--machine h100-pcie4 --devices cpu,cpu", "--machine h100-pcie4: is for fake devices and GPUs, not for cpu, cpu"),
    ("--machine h100-pcie4 --precision bf16", "--machine h100-pcie4 --precision bf16: emulated in float32"),
    (f"{L} --devices cpu --machine here", "--machine here: is for fake devices and GPUs, not for cpu"),
    (f"{L} --wire bf16", "--wire bf16: nothing crosses in lenet"),
    ("--devices cpu --overlap", "--overlap: nothing crosses in fashion on cpu"),
    ("--steeps 3", "--steeps"),
    ("--step 3", "--step"),
    ("everything", "everything"),
]


@pytest.mark.parametrize(
    ("words", "expected"), [(words, expected) for words, *expected in BAD], ids=[b[0] for b in BAD]
)
def test_bad_input_is_one_line_and_leaves_nothing(at_hand, words, expected):
    ran = started(words.replace("{tmp}", str(at_hand)).split(), at_hand / "runs")
    assert ran.code == 2
    assert ran.err.startswith("splitnet: error: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    for part in expected:
        assert part.replace("{tmp}", str(at_hand)) in ran.err
    assert ran.out == ""
    assert not (at_hand / "runs").exists()


@pytest.mark.parametrize("out", ["file", "file/below", "file/below/further"])
def test_a_place_that_cannot_be_written_is_one_line(at_hand, out):
    before = sorted(at_hand.rglob("*"))
    ran = started([*LENET, "--steps", "1"], at_hand / out)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"splitnet: error: --out {at_hand / out}: ")
    assert ran.err.count("\n") == 1
    assert sorted(at_hand.rglob("*")) == before


# Endings


def test_a_loss_that_is_not_finite_stops_the_run(go):
    ran = go(*LENET, "--steps", "20", "--optimizer", "sgd", "--lr", "1e38")
    found = re.fullmatch(r"splitnet: error: step (\d+): the loss is (nan|inf|-inf); .*\n", ran.err)
    assert ran.code == 1
    assert found
    step = int(found[1])
    assert step >= 1
    assert [s["step"] for s in ran.records("step")] == list(range(step))
    assert ran.json("run")["status"].startswith(f"failed: step {step}: the loss is ")
    assert ran.json("run")["steps"] == step
    assert f"Trained {step} step" in ran.out
    assert not (ran.folder / "compare.json").exists()


def test_a_test_whose_loss_is_not_finite_is_no_success(go):
    ran = go(*LENET, "--steps", "1", "--optimizer", "sgd", "--lr", "1e38")
    assert ran.code == 1
    assert re.match(r"splitnet: error: .*step 1\b.*loss\b.* is (nan|inf)", ran.err)
    assert len(ran.records("step")) == 1
    assert ran.json("run")["status"].startswith("failed")


def test_a_comparison_that_diverges_is_no_success(go, monkeypatch):
    compare = run.compare

    def diverging(*args):
        for text, found in compare(*args):
            if found:
                found["layouts"][0]["losses"][-1] = float("nan")
            yield text, found

    monkeypatch.setattr(run, "compare", diverging)
    ran = go(*LENET, "--steps", "1")
    assert ran.code == 1
    assert re.fullmatch(r"splitnet: error: .*comparison.*\n", ran.err)
    assert len(ran.records("test")) == 1
    assert ran.json("run")["status"].startswith("failed")
    assert not (ran.folder / "compare.json").exists()


def test_large_losses_are_readable(go):
    ran = go(*LENET, "--steps", "1", "--optimizer", "sgd", "--lr", "1e20", "--no-compare")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines()[2:-1])) <= 80
    assert "…" not in ran.out


def test_weights_that_are_not_finite_stop_at_the_first_step(go, tmp_path):
    state = build("lenet", towers=1, devices=["cpu"]).whole_state_dict()
    state["fc5.bias"].fill_(float("nan"))
    save(state, tmp_path / "nan.safetensors")
    ran = go(*LENET, "--steps", "5", "--weights", str(tmp_path / "nan.safetensors"))
    assert ran.code == 1
    assert ran.err.startswith("splitnet: error: step 0: the loss is nan")
    assert "Traceback" not in ran.err


def after(count, error):
    """A `train` that ends with an error after so many steps."""
    train = learning.train

    def cut(*args, **kwargs):
        for record in train(*args, **kwargs):
            if record.step == count:
                raise error
            yield record

    return cut


@pytest.mark.parametrize("count", [0, 1, 3])
def test_ctrl_c_keeps_the_records_and_prints_their_tables(go, monkeypatch, count):
    monkeypatch.setattr(learning, "train", after(count, KeyboardInterrupt()))
    ran = go(*LENET, "--steps", "9")
    assert (ran.code, ran.err) == (130, "")
    assert ran.json("run")["status"] == "interrupted"
    assert ran.json("run")["steps"] == count
    if count:
        assert len(ran.records("step")) == count
        assert f"Trained {count} step" in ran.out
    assert ran.out.splitlines()[-1] == f"Run folder: {ran.folder}"
    assert not (ran.folder / "compare.json").exists()


def test_ctrl_c_in_a_later_epoch_prints_the_tests_so_far(go, monkeypatch):
    monkeypatch.setattr(learning, "train", after(3, KeyboardInterrupt()))
    words = ["--preset", "lenet", "--towers", "1", "--data", "synthetic", "--batch-size", "300", "--epochs", "5"]
    ran = go(*words)
    assert ran.code == 130
    [test] = ran.records("test")
    assert f"{test['loss']:.4f} {test['accuracy']:.4f}" in " ".join(ran.out.split())


@pytest.mark.parametrize("where", ["compare", "evaluate", "audit"])
def test_ctrl_c_at_any_later_time_keeps_the_records(go, monkeypatch, where):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run if where == "compare" else learning, where, interrupted)
    ran = go(*LENET, "--steps", "2")
    assert (ran.code, ran.err) == (130, "")
    assert [s["step"] for s in ran.records("step")] == [0, 1]
    assert "Trained 2 steps" in ran.out
    assert ran.json("run")["status"] == "interrupted"


def test_ctrl_c_while_preparing_leaves_nothing(go, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "load", interrupted)
    ran = go(*LENET)
    assert (ran.code, ran.out, ran.err, ran.folder) == (130, "", "", None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DivergedError("step 1: the loss is nan"), "step 1: the loss is nan"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (torch.OutOfMemoryError("fake:0 is full\nand more"), "--batch-size"),
    ],
)
def test_other_endings_are_one_line_and_keep_the_records(go, monkeypatch, error, said):
    monkeypatch.setattr(learning, "train", after(2, error))
    ran = go(*LENET, "--steps", "9")
    assert ran.code == 1
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert len(ran.records("step")) == 2
    assert "Trained 2 steps" in ran.out
    assert ran.json("run")["status"].startswith("failed: ")


# As a process


def process(*words, **more):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | more.pop("env", {})
    words = [sys.executable, "-m", "splitnet.run", *LENET, "--threads", "1", *words]
    return subprocess.Popen(
        words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", **more
    )


@pytest.mark.slow
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.soak), "fake:0"])
def test_ctrl_c_from_outside(tmp_path, device):
    started = process("--steps", "1000000", "--devices", device, "--out", str(tmp_path))
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and started.poll() is None:
            if any(len(f.read_text().splitlines()) > 3 for f in tmp_path.glob("*/steps.jsonl")):
                break
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=30)
    finally:
        started.kill()
        started.wait()
    assert (started.returncode, err) == (130, "")
    [folder] = tmp_path.iterdir()
    ran = Ran(started.returncode, out, err, folder)
    steps = ran.records("step")
    assert [s["step"] for s in steps] == list(range(len(steps)))
    assert f"Trained {len(steps):,} steps" in out
    assert ran.json("run")["status"] == "interrupted"
    assert ran.json("run")["steps"] == len(steps)


@pytest.mark.slow
def test_bad_input_as_a_process_is_exit_2(tmp_path):
    ended = process("--batch-size", "0", "--out", str(tmp_path / "runs"))
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, out) == (2, "")
    assert err == "splitnet: error: --batch-size 0: at least 1\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_traceback(tmp_path):
    started = process("--steps", "3", "--no-compare", "--out", str(tmp_path))
    assert started.stdout.readline().startswith("lenet, one tower on ")
    started.stdout.close()
    err = started.stderr.read()
    started.wait(timeout=60)
    started.stderr.close()
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.slow
def test_a_terminal_without_these_characters_is_no_traceback(tmp_path):
    ended = process("--steps", "1", "--no-compare", "--out", str(tmp_path), env={"PYTHONIOENCODING": "ascii"})
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, err) == (0, "")
    assert "44,426" in out


@pytest.mark.parametrize("width", [20, 40, 50, 60, 70, 80, 120])
def test_the_progress_bar_is_one_line_of_the_terminal_and_keeps_its_count(width):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width)
    with progress.progress_bar(console, 400) as show:
        show(Step(48, 0, 2.2814, 0.125, 128, 23.0))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    drawn = [line for line in re.split(r"[\r\n]+", text) if "step" in line]
    assert drawn
    assert all(len(line.rstrip()) <= width and line.startswith("step ") and "/400" in line for line in drawn)
    assert "  1/400" in drawn[-1]
    least = {"loss 2.2814": 40, "5.6 images/s": 50, "accuracy 0.125": 70}
    assert {told: told in drawn[-1] for told in least} == {told: width >= least[told] for told in least}
    assert ("━" in text) == (width >= 80)


@pytest.mark.parametrize("width", [50, 60, 80])
def test_a_bar_says_while_the_first_step_compiles(width):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width)
    with progress.progress_bar(console, 4000, compiles=True) as show:
        show(Step(48, 0, 2.2814, 0.125, 128, 23.0))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    drawn = [line for line in re.split(r"[\r\n]+", text) if "step" in line]
    assert ("/4000 compiling" in drawn[0]) == (width >= 60)
    assert "compiling" not in drawn[-1]
    assert all(len(line.rstrip()) <= width for line in drawn)


def test_that_no_gpu_is_there_is_not_warned_of(caplog):
    without_cuda_notice()
    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
    logger.warning("another")
    assert [record.getMessage() for record in caplog.records] == ["another"]


WITHOUT = """
import sys
for name in ("plotly", "viztracer", "torch_tb_profiler", "matplotlib", "pandas"):
    sys.modules[name] = None
from splitnet.run import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_it_runs_where_what_only_viewers_need_is_not_installed(tmp_path):
    words = [sys.executable, "-c", WITHOUT, *LENET, "--steps", "2", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "report.html: not made; it needs plotly" in done.stdout
    [folder] = tmp_path.iterdir()
    made = {path.name for path in folder.iterdir()}
    assert {"report.md", "trace.json.gz", "tensorboard", "compare.json"} <= made
    assert "report.html" not in made


def test_pages_that_cannot_be_written_are_one_line(go, monkeypatch):
    def full(folder):
        raise UsageError(f"{folder}: cannot write there (No space left on device)")

    monkeypatch.setattr(reporting.pages, "write_pages", full)
    ran = go(*LENET, "--steps", "1", "--no-compare")
    assert ran.code == 1
    assert ran.err == f"splitnet: error: {ran.folder}: cannot write there (No space left on device)\n"
    assert ran.json("run")["status"] == "finished"
    assert len(ran.records("step")) == 1


def test_a_profile_is_over_before_the_first_test(go):
    """Two steps an epoch: a test between two recorded steps would be taken for part of one."""
    ran = go("--preset", "lenet", "--towers", "1", "--data", "fashion-mnist-small", "--batch-size", "1000",
             "--epochs", "2", "--no-compare", "--devices", "fake:0")  # fmt: skip
    steps = timeline.read(ran.folder / "trace.json.gz")["splitnet"]["steps"]
    assert [step["name"] for step in steps] == ["ProfilerStep#1"]


# How it is computed


def test_precision_wire_and_overlap_are_the_runs(go, monkeypatch):
    """Training, audit, comparison and pages: all by the itemsize on the wire, and beside towers that wait."""
    shrink(monkeypatch)
    ran = go(*SMALL, "--steps", "2", "--overlap", "--wire", "bf16", "--machine", "gtx580-pcie2")
    assert ran.code == 0, ran.err
    table = small("fashion").adapted(1, 10)
    options = ran.json("run")["options"]
    assert (options["overlap"], options["wire"], options["precision"]) == (True, "bf16", "float32")
    assert ran.json("run")["bytes_exchanged_a_step"] == table.bytes_exchanged(4) // 2
    layouts = {layout["layout"]: layout for layout in ran.json("compare")["layouts"]}
    assert list(layouts) == ["towers", "waiting", "whole", "replicas", "dense"]
    for name in ("towers", "waiting"):
        crossed = layouts[name]["exchanged"]
        assert sum(entry["measured"] for entry in crossed) == table.bytes_exchanged(4) // 2
        assert layouts[name]["exposed_ms"]["n"] == ROUNDS
        assert max(layouts[name]["loss_differences"]) < 0.05
    assert layouts["whole"]["exposed_ms"]["greatest"] == 0
    for layout in layouts.values():
        assert layout["predicted"]["step_ms"] > layout["predicted"]["exposed_ms"] >= 0
    assert layouts["towers"]["predicted"]["exposed_ms"] <= layouts["waiting"]["predicted"]["exposed_ms"]
    how = ", bf16 on the wire, overlap, emulated as gtx580-pcie2"
    assert ran.out.splitlines()[0].endswith(how)
    words = " ".join(ran.out.split())
    assert "Losses differ by the rounding of bf16 on the wire, which grows" in words
    assert (
        "equality in float64 without it, and agreement within tolerances with --precision float32 --wire bf16." in words
    )
    assert "cores" in ran.json("run")["machine"]
    machine = ran.json("run")["emulated"]
    assert (machine["name"], machine["speed"] > 1) == ("gtx580-pcie2", True)
    assert layouts["whole"]["device_step_ms"]["median"] < layouts["whole"]["step_ms"]["median"] / 2
    assert "Emulated: GeForce GTX 580 3 GB, " in ran.out
    report = (ran.folder / "report.md").read_text()
    assert "## Exposed communication" in report
    assert "| no overlap, fake:0, fake:1" in report
    assert "exposed on paper" in report
    assert "a launch of 7 us for each operation" in report
    assert max(map(len, report.partition("## Environment")[2].splitlines())) < 1000
    paper = next(line for line in ran.out.splitlines() if line.strip().startswith("on paper"))
    assert "On paper: what python -m splitnet.predict has of that machine" in " ".join(ran.out.split())
    assert all(len(figure.replace(".", "")) >= 3 for figure in paper.split()[2:]), paper
    page = (ran.folder / "report.html").read_text()
    assert "Exposed communication of a step" in page
    assert "…" not in ran.out.partition("Training steps")[2].partition("Median and range")[0]


def test_the_machine_at_hand_keeps_the_clocks_and_is_on_paper(go, monkeypatch):
    shrink(monkeypatch)
    ran = go(*SMALL, "--steps", "1", "--machine", "here")
    assert ran.code == 0, ran.err
    assert ran.json("run")["emulated"]["speed"] is None
    assert "On paper: this CPU" in ran.out
    layouts = ran.json("compare")["layouts"]
    assert all(layout["predicted"]["peak"] for layout in layouts)
    peaks = {layout["layout"]: max(held["peak"] for held in layout["memory"].values()) for layout in layouts}
    for layout in layouts:
        assert max(layout["predicted"]["peak"]) == pytest.approx(peaks[layout["layout"]], rel=0.2)


@pytest.mark.parametrize("fast", [False, True])
def test_bf16_says_where_it_is_slow(go, monkeypatch, fast):
    shrink(monkeypatch)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": fast})
    ran = go(*SMALL, "--steps", "1", "--devices", "cpu", "--precision", "bf16", "--no-keep-memory")
    assert ran.code == 0, ran.err
    assert ("no instructions for it" in ran.out) == (not fast)
    assert ran.json("run")["allocator"] == "as it is: --no-keep-memory"


def test_the_allocator_is_told(go):
    assert go(*LENET, "--steps", "0").json("run")["allocator"]


@pytest.mark.slow
def test_a_compiled_run_trains_as_one_that_is_not(go, tmp_path):
    """In a process of its own: torch.compile warns itself of what it does, which is an error here."""
    words = [*LENET, "--steps", "3", "--devices", "cpu", "--threads", "1", "--no-profile"]
    plain = go(*words, "--no-compare")
    out = tmp_path / "compiled"
    command = [sys.executable, "-m", "splitnet.run", *words, "--compile", "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    compiled = Ran(0, ended.stdout, ended.stderr, *out.iterdir())
    losses = [[record["loss"] for record in ran.records("step")] for ran in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    [layout] = compiled.json("compare")["layouts"]
    assert max(sample["wall"] for sample in layout["samples"]) < 1  # compiling took its time in the warm-up
