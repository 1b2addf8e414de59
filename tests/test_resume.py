"""Going on with a run: as never having stopped, with the options of the run, and nothing lost where it is refused."""

import contextlib
import errno
import itertools
import json
import os
import shutil
from types import SimpleNamespace

import damage
import pytest
import torch
from disks import small_disk
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from whole_runs import (
    KILLED,
    LENET,
    QUIET,
    check_same,
    command,
    folder_of,
    goes_on,
    kill,
    losses,
    made,
    numbers,
    records,
    unchanged,
)

from splitnet import job, learning, resuming, run
from splitnet.errors import UsageError
from splitnet.job import RunOptions
from splitnet.measure.profiler import Profile
from splitnet.measure.records import RunFolder, read_compare, read_run
from splitnet.measure.summary import summarise
from splitnet.measure.timeline import Timeline, read
from splitnet.network.towers import SplitNet
from splitnet.parallel import fake
from splitnet.parallel.placement import Placement
from splitnet.training import checkpoint, checkpoint_files
from splitnet.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow  # whole runs: `make fast` leaves them out

FASHION = ("--data", "synthetic", "--batch-size", "4")
LAYOUTS = ["cpu", "cpu,cpu", "fake:0,fake:1"]


# As never having stopped


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("devices", LAYOUTS)
def test_going_on_is_as_never_having_stopped(tmp_path, devices, optimizer):
    words = (*FASHION, "--devices", devices, "--optimizer", optimizer, "--save-every", "10")
    straight = made(tmp_path / "straight", *words, "--steps", "20")
    folder = made(tmp_path / "parts", *words, "--steps", "10")
    first = numbers(folder)
    said = goes_on(folder, "--steps", "20", "--devices", devices)
    assert "Resumes" in said.out
    assert "at step 10, epoch 0." in said.out
    assert len(set(losses(straight))) == 20
    # the run of ten steps was tested at its end; all else is the same
    [test] = [record for record in first if dict(record)["kind"] == "test"]
    assert numbers(folder)[: len(first)] == first
    assert [record for record in numbers(folder) if record != test] == numbers(straight)
    forget_test(folder, 10)
    check_same(folder, straight)


def forget_test(folder, step):
    """Take the test after that many updates out of steps.jsonl."""
    lines = (folder / "steps.jsonl").read_text().splitlines(True)
    kept = [line for line in lines if (json.loads(line)["kind"], json.loads(line)["step"]) != ("test", step)]
    assert len(kept) == len(lines) - 1
    (folder / "steps.jsonl").write_text("".join(kept))


@pytest.mark.slow
def test_from_layout_to_layout(tmp_path):
    straight = made(tmp_path / "straight", *FASHION, "--devices", "cpu", "--steps", "15")
    folder = made(tmp_path / "parts", *FASHION, "--devices", "cpu,cpu", "--steps", "5", "--save-every", "5")
    goes_on(folder, "--devices", "cpu", "--steps", "10")
    goes_on(folder, "--devices", "fake:0,fake:1", "--steps", "15")
    assert losses(folder) == pytest.approx(losses(straight), abs=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("stops", [1, 2, 3, 4, 5])
def test_over_the_end_of_an_epoch(tmp_path, stops, optimizer, straight):
    """Three steps an epoch, the last of 112 images; stopped at every place, a whole epoch among them."""
    folder = stopped(tmp_path, stops, "--optimizer", optimizer)
    assert Checkpoints(folder).last().step == stops
    assert read_run(folder)["status"] == "interrupted"
    goes_on(folder)
    assert [record["images"] for record in records(folder)] == [200, 200, 112] * 2 + [200]
    assert [(test["step"], test["epoch"]) for test in records(folder, "test")] == [(3, 1), (6, 2), (7, 3)]
    check_same(folder, straight(optimizer))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    found = {}

    def of(optimizer):
        if optimizer not in found:
            out = tmp_path_factory.mktemp(optimizer)
            found[optimizer] = made(out, *LENET, "--steps", "7", "--save-every", "1", "--optimizer", optimizer)
        return found[optimizer]

    return of


def stopped(tmp_path, steps, *words, limit="7"):
    """A run of seven steps, of which a signal ends so many, before what would be tested there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "train", signalled(steps))
        said = command(*LENET, "--steps", limit, "--save-every", "100", *words, *QUIET, "--out", tmp_path / "parts")
    assert (said.code, said.err) == (143, "")
    return folder_of(tmp_path / "parts")


def signalled(steps):
    """A `train` during whose last step SIGTERM comes."""
    train = learning.train

    def until(*args, **kwargs):
        found = train(*args, **kwargs)
        for number in itertools.count(1):
            if number == steps:
                os.kill(os.getpid(), 15)
            record = next(found, None)
            if record is None:
                return
            yield record

    return until


def test_a_run_stopped_in_every_step(tmp_path, straight):
    folder = stopped(tmp_path, 1)
    for steps in range(2, 7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learning, "train", signalled(1))
            said = command("--resume", folder, *QUIET)
        assert (said.code, said.err) == (143, "")
        assert Checkpoints(folder).last().step == steps
    goes_on(folder)
    check_same(folder, straight("adam"))


def test_an_end_of_an_epoch_is_tested_once(tmp_path, straight):
    """Killed after the test at the end of an epoch, of which the checkpoint is that before the test."""
    folder = made(tmp_path, *LENET, "--steps", "3", "--save-every", "3")
    assert [test["step"] for test in records(folder, "test")] == [3]
    said = goes_on(folder, "--steps", "7")
    assert "Trained 4 steps" in said.out
    check_same(folder, straight("adam"))


def test_steps_after_the_last_checkpoint_are_made_again(tmp_path, straight):
    """As kill -9 leaves it: more records than were saved, half a line at the end, a checkpoint half written."""
    folder = made(tmp_path, *LENET, "--steps", "7", "--save-every", "2")
    assert Checkpoints(folder).steps() == [6, 7]
    shutil.rmtree(folder / "checkpoints" / "step-0000000007")
    (folder / "checkpoints" / ".step-0000000007.aside").mkdir()
    with (folder / "steps.jsonl").open("a") as file:
        file.write('{"schema": 1, "kind": "st')
    goes_on(folder)
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")] == []
    check_same(folder, straight("adam"))


def test_the_pages_are_of_the_whole_run(tmp_path):
    folder = made(tmp_path, *LENET, "--steps", "4", "--save-every", "4")
    said = goes_on(folder, "--steps", "8", "--lr", "0.002")
    run = read_run(folder)
    assert (run["steps"], run["resumed_at"], run["status"]) == (8, 4, "finished")
    assert "Trained 4 steps" in said.out
    tests = records(folder, "test")
    assert [test["step"] for test in tests] == [3, 4, 6, 8]
    for test in tests:  # one table of all
        assert f"{test['loss']:.4f}" in said.out
    found = summarise(folder)
    assert [step["step"] for step in found.steps] == list(range(8))
    warm = [step["warms_up"] for step in found.steps]  # epochs of 8, 8 and 4 images; resumed in the second
    assert warm == [True, False, True, False, True, True, False, False]
    assert [test["step"] for test in found.tests] == [3, 4, 6, 8]
    text = (folder / "report.md").read_text()
    assert "8 steps" in text
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    shown = board.Scalars("train/loss")
    assert [point.step for point in shown] == list(range(8))
    assert [point.value for point in shown] == pytest.approx(losses(folder))
    assert [point.step for point in board.Scalars("test/loss")] == [3, 4, 6, 8]


# Options


def test_options_of_the_run_hold_where_nothing_is_said(tmp_path):
    words = ("--seed", "3", "--optimizer", "sgd", "--lr", "0.02")
    folder = made(tmp_path / "parts", *LENET, *words, "--epochs", "1", "--save-every", "2")
    before = read_run(folder)["options"]
    goes_on(folder, "--epochs", "2")
    goes_on(folder)  # nothing is left to do
    after = read_run(folder)["options"]
    differ = {name for name in after if after[name] != before[name]}
    assert differ == {"epochs", "resume", "out"}
    assert (after["epochs"], after["steps"], after["save_every"], after["lr"]) == (2, None, 2, 0.02)
    check_same(folder, made(tmp_path / "straight", *LENET, *words, "--epochs", "2", "--save-every", "2"))


def test_a_run_goes_on_in_the_precision_and_on_the_wire_that_it_began_with(tmp_path):
    words = (*FASHION, "--devices", "cpu,cpu", "--precision", "bf16", "--wire", "float16", "--overlap")
    folder = made(tmp_path / "parts", *words, "--workers", "1", "--no-keep-memory", "--steps", "1", "--save-every", "1")
    goes_on(folder, "--steps", "2", "--devices", "cpu,cpu")
    after = read_run(folder)["options"]
    names = ("precision", "wire", "overlap", "workers", "keep_memory")
    assert [after[name] for name in names] == ["bf16", "float16", True, 1, False]
    said = command("--resume", folder, "--steps", "3", "--precision", "float32", *QUIET)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "it was trained with --precision bf16, not float32" in said.err
    goes_on(folder, "--steps", "3", "--devices", "cpu")  # in one piece nothing crosses


def test_steps_may_be_said_where_epochs_were(tmp_path):
    folder = made(tmp_path, *LENET, "--epochs", "1", "--save-every", "100")
    goes_on(folder, "--steps", "5")
    assert len(losses(folder)) == 5
    assert (read_run(folder)["options"]["epochs"], read_run(folder)["options"]["steps"]) == (None, 5)
    goes_on(folder, "--epochs", "2", "--save-every", "3")
    assert len(losses(folder)) == 6
    assert (read_run(folder)["options"]["epochs"], read_run(folder)["options"]["steps"]) == (2, None)
    assert read_run(folder)["options"]["save_every"] == 3


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_another_learning_rate_is_used_and_kept(tmp_path, optimizer):
    words = (*LENET, "--optimizer", optimizer, "--save-every", "100")
    folder = made(tmp_path / "a", *words, "--steps", "4")
    shutil.copytree(folder, tmp_path / "same")
    shutil.copytree(folder, tmp_path / "zero")
    assert Checkpoints(folder).last().schedule[0]["lr"] == {"adam": 0.001, "sgd": 0.01}[optimizer]
    saved = Checkpoints(folder).last()
    goes_on(tmp_path / "same", "--steps", "6")
    goes_on(folder, "--steps", "6", "--lr", "0.05")
    goes_on(tmp_path / "zero", "--steps", "6", "--lr", "1e-30")
    assert losses(folder)[:5] == losses(tmp_path / "same")[:5]  # the loss is of before the update
    assert losses(folder)[5] != losses(tmp_path / "same")[5]
    assert Checkpoints(folder).last().schedule[0]["lr"] == 0.05
    for name, weight in Checkpoints(tmp_path / "zero").last().weights.items():
        expected = saved.weights[name]
        if optimizer == "sgd":  # its velocity holds the old rate, and goes on alone: 0.9 of it, then 0.81
            expected = expected - 0.01 * (0.9 + 0.81) * saved.optimizer[f"{name}.momentum_buffer"]
            assert not torch.equal(weight, saved.weights[name]), name
        assert torch.allclose(weight, expected, rtol=1e-5, atol=1e-7), name
    shutil.copytree(folder, tmp_path / "again")
    goes_on(tmp_path / "again", "--steps", "8")  # what was said last holds
    assert Checkpoints(tmp_path / "again").last().schedule[0]["lr"] == 0.05


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run that must not be touched."""
    words = ("--data", "synthetic", "--batch-size", "8", "--devices", "cpu", "--steps", "2", "--save-every", "1")
    return made(tmp_path_factory.mktemp("saved"), *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--batch-size 4", "it was trained with --batch-size 8, not 4"),
        ("--optimizer sgd", "it was trained with --optimizer adam, not sgd"),
        ("--seed 1", "it was trained with --seed 0, not 1"),
        ("--data fashion-mnist-small", "weights of another network"),
        ("--preset alexnet", "weights of another network"),
        ("--preset alexnet-plain-pool", "weights of another network"),
        ("--towers 1", "weights of another network"),
        ("--crosses all", "weights of another network"),
        ("--crosses none", "weights of another network"),
        ("--weights w.safetensors", "--weights w.safetensors: --resume {run} has its own"),
        ("--preset nonsense", "nonsense"),
        ("--steps 3 --epochs 1", "give it or --epochs 1"),
        ("--devices cuda:7", "--devices cuda:7"),
        ("--lr 0", "--lr 0"),
    ],
)
def test_what_differs_is_one_line_and_changes_nothing(saved, words, told):
    same = unchanged(saved)
    said = command("--resume", saved, *words.split())
    assert (said.code, said.out) == (2, "")
    assert told.replace("{run}", str(saved)) in said.line
    assert same()


def test_another_set_of_the_same_shapes_is_told(tmp_path):
    for split, name in itertools.product(("train", "val"), "abcdefghij"):
        (tmp_path / "images" / split / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), (99, 99, 200)).save(tmp_path / "images" / split / name / "1.png")
    folder = made(tmp_path / "runs", *LENET, "--steps", "1", "--save-every", "1")
    same = unchanged(folder)
    said = command("--resume", folder, "--data", "imagefolder", "--data-dir", tmp_path / "images")
    assert said.code == 2
    assert said.line.endswith(
        "it was trained with --data synthetic of 512 training images, not imagefolder of 10 training images"
    )
    assert same()


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("nothing", "no such folder"),
        ("file", "not a folder"),
        ("empty", "no run's folder: it holds neither checkpoints nor run.json"),
        ("unsaved", "no checkpoint there"),
        ("no run", "it holds no run.json"),
        ("no steps", "steps.jsonl: cannot be read"),
        ("n" * 300, "too long"),
    ],
)
def test_there_must_be_a_run_with_a_checkpoint(tmp_path, saved, place, told):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    for name, lacks in (("unsaved", "checkpoints"), ("no run", "run.json"), ("no steps", "steps.jsonl")):
        shutil.copytree(saved, tmp_path / name)
        path = tmp_path / name / lacks
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    same = unchanged(tmp_path)
    said = command("--resume", tmp_path / place)
    assert (said.code, said.out) == (2, "")
    assert told in said.line
    assert same()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preset", 5),
        ("preset", ["fashion"]),
        ("preset", "nonsense"),
        ("towers", "two"),
        ("towers", {}),
        ("crosses", 7),
        ("batch_size", 8.5),
        ("batch_size", True),
        ("batch_size", -1),
        ("optimizer", "lion"),
        ("data", False),
        ("data_dir", 7),
        ("lr", [0.1]),
        ("lr", "fast"),
        ("seed", "0x1"),
        ("save_every", 0),
        ("save_every", 2.5),
        ("steps", "many"),
        ("steps", [3]),
        ("epochs", {"a": 1}),
    ],
)
def test_options_of_a_run_json_that_no_command_line_has_are_one_line(tmp_path, saved, name, value):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    found = json.loads((folder / "run.json").read_text())
    found["options"][name] = value
    (folder / "run.json").write_text(json.dumps(found))
    same = unchanged(folder)
    said = command("--resume", folder)
    assert (said.code, said.out) == (2, "")
    assert f"{folder}/run.json: " in said.line or str(value) in said.line
    assert same()


def test_nothing_left_to_do(tmp_path):
    folder = made(tmp_path, *LENET, "--steps", "4", "--save-every", "2")
    before, same = numbers(folder), unchanged(folder / "checkpoints")
    said = goes_on(folder)
    assert "Trained" not in said.out
    assert numbers(folder) == before
    assert same()
    assert (read_run(folder)["status"], read_run(folder)["steps"]) == ("finished", 4)


@pytest.mark.parametrize(("words", "has"), [(("--steps", "2"), 4), (("--epochs", "1"), 2), (("--steps", "0"), 4)])
def test_fewer_steps_than_it_has(tmp_path, words, has):
    """They are there already, and somebody means something else: nothing is done, and nothing undone."""
    folder = made(tmp_path, *LENET, "--steps", "4", "--save-every", "2")
    whole = unchanged(folder)
    said = command("--resume", folder, *words)
    line = f"{' '.join(words)}: --resume {folder} has {has} already; say how many in all"
    assert (said.code, said.line) == (2, line)
    assert whole()
    goes_on(folder, "--steps", "5")
    assert len(losses(folder)) == 5


def test_a_job_that_torchrun_restarts_goes_on_though_it_was_started_from_weights(tmp_path, monkeypatch):
    folder = made(tmp_path / "runs", *LENET, "--steps", "2", "--save-every", "1")
    weights = folder / "checkpoints" / "step-0000000002" / "weights.safetensors"
    words = (*LENET, "--steps", "3", "--save-every", "1", "--weights", weights, *QUIET)
    monkeypatch.setattr(resuming, "_last_attempt", lambda party: folder)
    said = command(*words, "--out", tmp_path / "new")
    assert (said.code, said.err) == (0, "")
    assert not (tmp_path / "new").exists()
    assert len(losses(folder)) == 3


# Kills


@pytest.mark.slow
def test_kills_at_any_moment_cost_no_more_than_the_step_under_way(tmp_path):
    """Three of the hundred of `make soak`."""
    straight = made(tmp_path / "straight", *KILLED, "--steps", "150", "--save-every", "1000")
    steps = [kill(tmp_path / "runs", straight, number) for number in (1, 3, 4)]  # none of these before it has saved
    assert 0 < steps[0] < steps[1] < steps[2]
    folder = folder_of(tmp_path / "runs")
    goes_on(folder, "--save-every", "1000")
    check_same(folder, straight)


# Damaged checkpoints


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A run in whose place damaged ones are put."""
    parent = tmp_path_factory.mktemp("good")
    folder = made(parent / "out", *LENET, "--steps", "10", "--save-every", "5")
    return folder.rename(parent / "run")


@pytest.mark.parametrize("number", range(16))
def test_a_damaged_checkpoint_is_one_line(good, number):
    """A handful of those that `make soak` reads, at the command line."""
    what, folder = damage.damaged(good, number)
    same = unchanged(folder)
    said = command("--resume", folder)
    assert (said.code, said.out) == (2, ""), what
    assert same(), what
    assert not damage.RAN.exists(), what
    assert str(folder) in said.line, what
    shutil.rmtree(folder)


def test_the_line_says_how_to_go_on(good, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(good, folder)
    newest = folder / "checkpoints" / "step-0000000010"
    damage.flipped(newest, damage.WEIGHTS, 0.5, 3)
    said = command("--resume", folder)
    assert said.line.endswith(f"; remove {newest} to resume from step-0000000005")
    shutil.rmtree(newest)
    goes_on(folder)
    check_same(folder, good)


# Full disks


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_from(step, monkeypatch):
    """From that checkpoint on there is no room for any. Returns what makes room."""
    write = checkpoint_files.write

    def written(found, folder):
        if found.step >= step:
            folder.mkdir()
            (folder / "weights.safetensors").write_bytes(b"half")
            raise FULL
        write(found, folder)

    monkeypatch.setattr(checkpoint.checkpoint_files, "write", written)
    return lambda: monkeypatch.setattr(checkpoint.checkpoint_files, "write", write)


def test_a_run_goes_on_without_room_for_checkpoints(tmp_path, monkeypatch, straight):
    make_room = full_from(4, monkeypatch)
    said = command(*LENET, "--steps", "7", "--save-every", "2", "--out", tmp_path, *QUIET)
    assert (said.code, said.err) == (0, "")
    lines = [line for line in said.out.splitlines() if line.startswith("No checkpoint")]
    why = "(No space left on device); that of step 2 stands."
    assert lines == [f"No checkpoint of step {step} {why}" for step in (4, 6, 7)]
    folder = folder_of(tmp_path)
    assert len(losses(folder)) == 7
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-0000000002"]
    make_room()
    goes_on(folder)
    check_same(folder, straight("adam"))


def test_a_run_without_room_for_any_checkpoint(tmp_path, monkeypatch):
    full_from(0, monkeypatch)
    said = command(*LENET, "--steps", "2", "--save-every", "1", "--out", tmp_path, *QUIET)
    assert (said.code, said.err) == (0, "")
    assert said.out.count("(No space left on device); there is none yet.") == 2
    assert "no checkpoint there" in command("--resume", folder_of(tmp_path)).line


def test_an_interrupt_without_room_says_what_stands(tmp_path, monkeypatch):
    full_from(2, monkeypatch)
    monkeypatch.setattr(learning, "train", signalled(3))
    said = command(*LENET, "--steps", "7", "--save-every", "1", "--out", tmp_path, *QUIET)
    assert (said.code, said.err) == (143, "")
    assert "No checkpoint of step 3 (No space left on device); that of step 1 stands." in said.out
    assert Checkpoints(folder_of(tmp_path)).steps() == [1]
    assert len(losses(folder_of(tmp_path))) == 3


def test_a_disk_that_is_full_at_every_turn_is_one_line(tmp_path, monkeypatch):
    """The training, and then the end of its records."""

    def full(*_, **__):
        raise FULL

    monkeypatch.setattr(learning, "train", full)
    monkeypatch.setattr(RunFolder, "close", full)
    said = command(*LENET, "--steps", "2", "--out", tmp_path, *QUIET)
    assert said.code == 1
    assert said.line == f"{folder_of(tmp_path)}: No space left on device"


def test_without_room_for_a_run_there_is_no_folder(tmp_path, monkeypatch):
    def full(path, content):
        raise FULL

    monkeypatch.setattr("splitnet.measure.records.write_whole", full)
    said = command(*LENET, "--steps", "2", "--out", tmp_path / "runs", *QUIET)
    assert said.code == 1
    assert said.line.endswith("-lenet-1x1: No space left on device")
    assert list((tmp_path / "runs").iterdir()) == []


def test_going_on_where_the_records_cannot_be_cut_is_one_line(tmp_path, monkeypatch, saved):
    shutil.copytree(saved, tmp_path / "run")
    same = unchanged(tmp_path)

    def full(path, content):
        raise FULL

    monkeypatch.setattr("splitnet.measure.lines.write_whole", full)
    said = command("--resume", tmp_path / "run")
    assert (said.code, said.out) == (2, "")
    assert said.line == f"--resume {tmp_path / 'run'}: cannot write there (No space left on device)"
    assert same()


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "16m") as place:
        yield place


def fill(path, leave=0):
    """Take all the room there is, but for so many bytes."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(path, max(0, path.stat().st_size - leave))


def filled(path, leave, full, room=None):
    """A `train` that has the disk full after the step of number `full`, and again with room after that of `room`."""
    train = learning.train

    def filling(*args, **kwargs):
        for record in train(*args, **kwargs):
            if record.step == full:
                fill(path, leave)
            if record.step == room:
                path.unlink()
            yield record

    return filling


MANY = ("--preset", "lenet", "--towers", "1", "--data", "synthetic", "--batch-size", "8", "--steps", "70")
"""More steps than the rest of a disk's block has room for records of."""


@pytest.mark.parametrize("leave", [0, 100_000, 300_000])
def test_a_full_disk_costs_no_checkpoint_and_no_record(disk, tmp_path, monkeypatch, leave):
    """Filled after two steps; room comes back before the last of them."""
    before = made(tmp_path / "straight", *MANY, "--save-every", "10")
    held, append = [], RunFolder.append

    def noted(folder, kind, record):
        append(folder, kind, record)
        held.append(folder.held)

    monkeypatch.setattr(RunFolder, "append", noted)
    monkeypatch.setattr(learning, "train", filled(disk / "ballast", leave, full=12, room=68))
    said = command(*MANY, "--save-every", "10", "--out", disk / "runs", *QUIET)
    assert (said.code, said.err) == (0, "")
    folder = folder_of(disk / "runs")
    assert [line for line in said.out.splitlines() if "No checkpoint" in line] == [
        f"No checkpoint of step {step} (No space left on device); that of step 10 stands." for step in range(20, 70, 10)
    ]
    assert (max(held) > 10) == (leave == 0)
    assert Checkpoints(folder).steps() == [10, 70]
    check_same(folder, before)


def test_a_disk_that_stays_full_is_one_line_and_what_was_saved_stands(disk, tmp_path):
    before = made(tmp_path / "straight", *MANY, "--save-every", "10")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "train", filled(disk / "ballast", leave=0, full=12))
        said = command(*MANY, "--save-every", "10", "--out", disk / "runs", *QUIET)
    folder = folder_of(disk / "runs")
    assert said.code == 1
    assert said.line == f"{folder}: No space left on device"
    assert Checkpoints(folder).steps() == [10]
    kept = len(records(folder))
    assert 10 <= kept < 70
    assert numbers(folder)[:kept] == numbers(before)[:kept]
    same = unchanged(folder)
    again = command("--resume", folder, *QUIET)
    assert (again.code, again.out) == (2, "")
    assert again.line == f"--resume {folder}: cannot write there (No space left on device)"
    assert same()
    (disk / "ballast").unlink()
    goes_on(folder)
    check_same(folder, before)


# Unsound links


PAIR = (*FASHION, "--devices", "fake:0,fake:1")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run whose links bring what they were given."""
    return made(tmp_path_factory.mktemp("sound"), *PAIR, "--steps", "4", "--save-every", "4")


@pytest.mark.parametrize("kind", ["zeros", "stale", "flip", "misroute"])
def test_a_run_refuses_an_unsound_link_and_can_go_through_the_host(tmp_path, sound, kind):
    words = (*PAIR, "--steps", "4", "--save-every", "4", "--out", tmp_path / "runs")
    fake.install(2)
    with fake.fault(kind, source="fake:0", target="fake:1"):
        said = command(*words, *QUIET)
        assert (said.code, said.out) == (1, "")
        assert said.line.startswith("unsound link: fake:0 -> fake:1: ")
        assert f"({kind}: " in said.line
        assert said.line.endswith("; --link host goes through host memory instead")
        assert not (tmp_path / "runs").exists()
        said = command(*words, "--link", "host", *QUIET)
    assert (said.code, said.err) == (0, "")
    check_same(folder_of(tmp_path / "runs"), sound)


def test_through_the_host_is_as_direct(tmp_path, sound):
    check_same(made(tmp_path, *PAIR, "--steps", "4", "--save-every", "4", "--link", "host"), sound)


@pytest.mark.slow
def test_the_comparison_goes_through_the_host_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROUNDS", 2)
    fake.install(2)
    with fake.fault("flip", source="fake:0", target="fake:1"):
        said = command(*PAIR, "--steps", "2", "--link", "host", "--out", tmp_path)
    assert (said.code, said.err) == (0, "")
    towers, _, replicas, _ = read_compare(folder_of(tmp_path))["layouts"]
    assert max(*towers["loss_differences"], *replicas["loss_differences"]) < 1e-4


@pytest.mark.parametrize("source", ["cpu", "fake:1"])
def test_a_resumed_run_refuses_an_unsound_link_and_touches_nothing(sound, source):
    same = unchanged(sound)
    with fake.fault("flip", source=source, target="fake:0"):
        said = command("--resume", sound, "--steps", "6", "--devices", "fake:0,fake:1", *QUIET)
    assert (said.code, said.out) == (1, "")
    assert said.line.startswith(f"unsound link: {source} -> fake:0: ")
    assert same()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_checkpoint_is_in_no_profiled_step(tmp_path, monkeypatch, every):
    """What a trace shows of a step is the step."""
    moments = []
    profiled = []
    save, step = Checkpoints.save, Profile.step

    def saved(self, checkpoint):
        [profile] = profiled
        moments.append(profile.recording)
        return save(self, checkpoint)

    def stepped(self):
        profiled[:] = [self]
        step(self)

    monkeypatch.setattr(Checkpoints, "save", saved)
    monkeypatch.setattr(Profile, "step", stepped)
    monkeypatch.setattr(Profile, "__init__", remembering(Profile.__init__, profiled))
    words = (*LENET, "--devices", "fake:0", "--steps", "6", "--save-every", str(every), "--no-compare")
    said = command("--out", tmp_path, *words)
    assert (said.code, said.err) == (0, "")
    assert len(moments) == 6 // every
    assert not any(moments)
    assert len(Timeline(read(folder_of(tmp_path) / "trace.json.gz")).steps) >= 1


def remembering(init, where):
    def made(self, *args, **kwargs):
        init(self, *args, **kwargs)
        where[:] = [self]

    return made


def test_what_was_left_out_is_left_out_again(tmp_path):
    folder = made(tmp_path, *LENET, "--steps", "2", "--save-every", "2")
    said = command("--resume", folder, "--steps", "3")
    assert (said.code, said.err) == (0, "")
    assert not (folder / "compare.json").exists()
    assert read_run(folder)["options"]["compare"] is False


def test_where_it_was_and_where_checkpoints_go_is_told(tmp_path):
    folder = made(tmp_path, *LENET, "--devices", "fake:1", "--steps", "2", "--save-every", "2")
    said = command("--resume", folder, "--steps", "3", "--devices", "cpu")
    assert "it was on fake:1" in said.out
    assert f"Every 2 steps a checkpoint in {folder / 'checkpoints'}" in said.out


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    """Reading would refuse them, and the good one before them would be gone."""
    whole = SplitNet.whole_state_dict
    counts = iter(range(100))

    def overflown(self):
        state = whole(self)
        if next(counts):  # the first checkpoint is good
            state["conv1.weight"][0] = torch.inf
        return state

    monkeypatch.setattr(SplitNet, "whole_state_dict", overflown)
    said = command("--out", tmp_path, *LENET, "--steps", "3", "--save-every", "1", *QUIET)
    assert (said.code, said.err) == (0, "")
    assert "No checkpoint of step 2 (weights that are not finite); that of step 1 stands" in " ".join(said.out.split())
    assert Checkpoints(folder_of(tmp_path)).last().step == 1


@pytest.mark.parametrize(("device", "replicas", "refused"), [("cuda", 2, True), ("cuda", 1, False), ("cpu", 2, False)])
def test_what_replicas_sum_by_nccl_takes_no_detour(device, replicas, refused):
    """Nobody could try it here: the refusal is of a stand-in for processes on GPUs."""
    ranks = SimpleNamespace(device=torch.device(device), replicas=replicas)
    placement = Placement((torch.device(device),), "", ranks)
    if refused:
        with pytest.raises(UsageError, match="--link host: gradients of 2 replicas"):
            job.check_link(RunOptions(link="host"), placement)
    else:
        job.check_link(RunOptions(link="host"), placement)
    job.check_link(RunOptions(), placement)
