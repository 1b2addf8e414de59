"""Ctrl-C and SIGTERM at any moment of a run of one process: it ends in order, and goes on from there bit for bit."""

import contextlib
import io
import itertools
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from layouts import small
from quick import few
from whole_runs import LENET, QUIET, Process, Said, check_same, folder_of, goes_on, losses, made, unchanged

import splitnet
from splitnet import job, learning, reporting, run
from splitnet.measure.records import read_run
from splitnet.options import guarded
from splitnet.training import checkpoint_files
from splitnet.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow  # of whole runs

LONG = (*LENET[:-1], "8", "--steps", "100000")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
BOTH = pytest.mark.parametrize("number", list(STATUS), ids=lambda number: number.name)


# Processes


def count(out):
    """Steps recorded so far."""
    return sum(path.read_bytes().count(b'"step", ') for path in out.glob("*/steps.jsonl"))


@pytest.mark.slow
@BOTH
def test_a_signal_ends_the_training_after_the_step_and_saves(tmp_path, number):
    with Process(*LONG, "--save-every", "100000", "--out", tmp_path / "runs") as process:
        process.wait_for(lambda: count(tmp_path / "runs") > 3)
        process.send(number)
        ended = process.ended()
    assert (ended.code, ended.err) == (STATUS[number], "")
    folder = folder_of(tmp_path / "runs")
    done = len(losses(folder))
    assert done > 3
    assert "Interrupted: what was recorded is kept." in ended.out
    assert f"Saved at step {done:,}; to go on: --resume" in ended.out
    assert (read_run(folder)["status"], read_run(folder)["steps"]) == ("interrupted", done)
    assert not (folder / "compare.json").exists()
    assert Checkpoints(folder).steps() == [done]
    goes_on(folder, "--steps", done + 5)
    check_same(folder, made(tmp_path / "straight", *LENET[:-1], "8", "--steps", done + 5, "--save-every", "100000"))


WAITS = """
import sys, time
from pathlib import Path
from layouts import small
from splitnet import job, run
from splitnet.options import guarded
from splitnet.training import checkpoint_files, loop

def wait(seconds):
    mark = Path(sys.argv[-1]) / "waits"
    mark.touch()
    time.sleep(seconds)
    mark.unlink()

step, write, count = loop.training_step, checkpoint_files.write, 0

def slow_step(*args):
    global count
    count += 1
    if count == 5:
        wait(60)
    return step(*args)

def slow_write(checkpoint, folder):
    write(checkpoint, folder)
    wait(1)

if sys.argv.pop(1) == "step":
    loop.training_step = slow_step
else:
    checkpoint_files.write = slow_write
job.preset = small
guarded(lambda: run.main(sys.argv[1:]))
"""


@pytest.fixture
def waiting(tmp_path):
    """Starts a run that waits somewhere, and returns it and the file that is there meanwhile."""
    script, out = tmp_path / "waits.py", tmp_path / "runs"
    script.write_text(WAITS)
    out.mkdir()

    def started(where, *words):
        return Process(where, *LENET, *words, *QUIET, "--out", out, script=script), out / "waits"

    return started


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path, waiting):
    """The fifth step takes a minute: it can only have been broken off."""
    process, mark = waiting("step", "--steps", "9", "--save-every", "1")
    with process:
        process.wait_for(mark.exists)
        process.send(signal.SIGINT)
        time.sleep(0.3)
        assert process.process.poll() is None  # it waits for the step
        process.send(signal.SIGTERM)  # as torchrun does, again and again: that is not impatience
        time.sleep(0.3)
        assert process.process.poll() is None
        process.send(signal.SIGINT)
        ended = process.ended(30)
    assert (ended.code, ended.err) == (130, "")
    mark.unlink()
    folder = folder_of(tmp_path / "runs")
    assert read_run(folder)["status"] == "interrupted"
    assert len(losses(folder)) == 4
    assert Checkpoints(folder).steps() == [3, 4]
    goes_on(folder)
    check_same(folder, made(tmp_path / "straight", *LENET, "--steps", "9", "--save-every", "1"))


@pytest.mark.slow
def test_ctrl_c_while_a_checkpoint_is_written_waits_for_it_and_the_next_step(tmp_path, waiting):
    process, mark = waiting("write", "--steps", "9", "--save-every", "2")
    with process:
        process.wait_for(mark.exists)
        process.send(signal.SIGINT)
        ended = process.ended(30)
    assert (ended.code, ended.err) == (130, "")
    folder = folder_of(tmp_path / "runs")
    assert len(losses(folder)) == 3
    assert Checkpoints(folder).steps() == [2, 3]
    goes_on(folder)
    check_same(folder, made(tmp_path / "straight", *LENET, "--steps", "9", "--save-every", "2"))


# In this process: real signals, at moments that a test can name


def ended(*words):
    """As `python -m splitnet.run` ends: interrupts come out of `guarded` as a status."""
    job.preset, preset = small, job.preset
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as found:
        guarded(lambda: run.main(list(map(str, words))))
    job.preset = preset
    return Said(found.value.code, out.getvalue(), err.getvalue())


FOUR = (*LENET, "--steps", "4", "--no-profile")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return made(tmp_path_factory.mktemp("straight"), *FOUR, "--save-every", "2")


def signals(monkeypatch, place, name, number):
    """Send it when `place.name` is called, once in a run."""
    real = getattr(place, name)
    sent = []

    def called(*args, **kwargs):
        handler = signal.getsignal(number)  # each run has its own
        if handler not in sent:
            sent.append(handler)
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, called)


@pytest.mark.parametrize("number", list(STATUS), ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("place", "name", "done", "status"),
    [
        (learning, "evaluate", 3, "interrupted"),
        pytest.param(learning, "audit", 4, "interrupted", marks=pytest.mark.slow),
        (run, "compare", 4, "interrupted"),
        pytest.param(reporting.Report, "trained", 4, "interrupted", marks=pytest.mark.slow),
        (reporting.Report, "close", 4, "finished"),
        (reporting.pages, "write_pages", 4, "finished"),
    ],
    ids=["testing", "auditing", "comparing", "telling", "closing", "writing pages"],
)
def test_a_signal_at_any_other_time(tmp_path, monkeypatch, straight, number, place, name, done, status):
    with monkeypatch.context() as patch:
        signals(patch, place, name, number)
        said = ended(*FOUR, "--save-every", "2", "--out", tmp_path)
    assert (said.code, said.err) == (STATUS[number], "")
    folder = folder_of(tmp_path)
    assert said.out.splitlines()[-1] == f"Run folder: {folder}"
    assert (read_run(folder)["status"], read_run(folder)["steps"]) == (status, done)
    assert not (folder / "compare.json").exists() or place is reporting.pages or name == "close"
    assert len(losses(folder)) == done
    assert Checkpoints(folder).last().step == done
    goes_on(folder)
    check_same(folder, straight)


@BOTH
@pytest.mark.parametrize("name", ["load", "place"])
def test_a_signal_while_preparing_leaves_nothing(tmp_path, monkeypatch, number, name):
    signals(monkeypatch, job, name, number)
    said = ended(*FOUR, "--out", tmp_path)
    assert said == Said(STATUS[number], "", "")
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_a_signal_once_the_folder_is_made_waits_until_it_says_what_it_is(tmp_path, monkeypatch, straight, number):
    shutil.copytree(straight, tmp_path / "run")
    for words in ((*FOUR, "--out", tmp_path / "new"), ("--resume", tmp_path / "run", "--steps", "6")):
        with monkeypatch.context() as patch:
            signals(patch, run, "open_folder", number)
            said = ended(*words)
        assert (said.code, said.err) == (STATUS[number], "")
        assert "Interrupted" in said.out
    for folder in (folder_of(tmp_path / "new"), tmp_path / "run"):
        assert read_run(folder)["status"] == "interrupted"
        assert read_run(folder)["devices"]
    goes_on(tmp_path / "run", "--steps", "4")
    check_same(tmp_path / "run", straight)


def test_two_signals_while_a_folder_is_made_leave_none(tmp_path, monkeypatch, straight):
    shutil.copytree(straight, tmp_path / "run")
    signals(monkeypatch, run, "open_folder", signal.SIGINT)
    signals(monkeypatch, reporting, "describe", signal.SIGINT)
    same = unchanged(tmp_path)
    for words in ((*FOUR, "--out", tmp_path / "new"), ("--resume", tmp_path / "run")):
        assert ended(*words) == Said(130, "", "")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new").rmdir()
    assert same()


@BOTH
def test_a_signal_in_the_last_save_is_not_forgotten(tmp_path, monkeypatch, number):
    """The run ends with an epoch, which has been tested: nothing is left that would ask whether to stop."""
    signals(monkeypatch, checkpoint_files, "write", number)
    said = ended(*LENET, "--epochs", "1", "--save-every", "100", "--out", tmp_path)
    assert (said.code, said.err) == (STATUS[number], "")
    folder = folder_of(tmp_path)
    assert not (folder / "compare.json").exists()
    assert (read_run(folder)["status"], Checkpoints(folder).steps()) == ("interrupted", [3])


@BOTH
def test_a_test_is_broken_off_at_once(tmp_path, monkeypatch, number):
    monkeypatch.setattr(learning, "evaluate", lambda *_, **__: pytest.fail("it went on"))
    signals(monkeypatch, learning, "evaluate", number)
    assert ended(*FOUR, "--out", tmp_path).code == STATUS[number]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_two_signals_in_a_step_save_nothing(tmp_path, monkeypatch, number):
    """What stands then has half an update in it."""
    update, count = torch.optim.Adam.step, itertools.count()

    def impatient(*args, **kwargs):
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return update(*args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", impatient)
    said = ended(*FOUR, "--save-every", "100", "--out", tmp_path)
    assert (said.code, said.err) == (130, "")
    folder = folder_of(tmp_path)
    assert read_run(folder)["status"] == "interrupted"
    assert list(folder.glob("checkpoints/*")) == []
    assert read_run(folder)["steps"] == number


@BOTH
def test_before_the_first_step_there_is_nothing_to_save(tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        signals(patch, learning, "evaluate", number)
        said = ended(*LENET, "--steps", "0", "--save-every", "1", "--out", tmp_path / "runs")
    assert (said.code, said.err) == (STATUS[number], "")
    assert not (folder_of(tmp_path / "runs") / "checkpoints").exists()
    assert not (made(tmp_path / "whole", *LENET, "--steps", "0", "--save-every", "1") / "checkpoints").exists()


class Lines:
    """Counts the lines that the program comes to while it learns, and sends signals at some of them."""

    FILES = frozenset(
        f"{Path(splitnet.__file__).parent}/{name}.py"
        for name in (
            "learning",
            "reporting",
            "measure/records",
            "measure/lines",
            "training/loop",
            "training/prefetch",
            "training/splits",
            "training/sharing",
            "training/checkpoint",
            "training/checkpoint_files",
            "training/optimizer_state",
        )
    )

    def __init__(self, at=()):
        self.at, self.count = dict(at), 0

    def enter(self, frame, event, arg):
        return self.step if frame.f_code.co_filename in self.FILES else None

    def step(self, frame, event, arg):
        if event == "line":
            self.count += 1
            if self.count in self.at:
                os.kill(os.getpid(), self.at[self.count])
        return self.step

    def run(self, *words):
        learn = learning.Learner.learn

        def traced(learner):
            before = sys.gettrace()
            sys.settrace(self.enter)
            try:
                return learn(learner)
            finally:
                sys.settrace(before)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learning.Learner, "learn", traced)
            return ended(*words)


def check_signalled(tmp_path, straight, number, twice):
    """One or two signals at lines of that number: it ends in order, and nothing is lost but a step under way."""
    chance = random.Random(number)
    words = (*FOUR, "--no-compare", "--save-every", "1")
    counted = Lines()
    counted.run(*words, "--out", tmp_path / "counted")
    first, kind = chance.randrange(1, counted.count), signal.SIGINT if twice else chance.choice(list(STATUS))
    at = {first: kind, first + 1 + int(chance.expovariate(1 / 60)): signal.SIGINT} if twice else {first: kind}
    said = Lines(at).run(*words, "--out", tmp_path / "runs")
    assert (said.code, said.err) == (STATUS[kind], ""), at
    folder = folder_of(tmp_path / "runs")
    assert read_run(folder)["status"] in (("interrupted", "finished") if twice else ("interrupted",)), at
    done = len(losses(folder)) if (folder / "steps.jsonl").exists() else 0
    saved = max(Checkpoints(folder).steps(), default=0)
    assert saved in ((done - 1, done) if twice else (done,)), at
    if saved:
        goes_on(folder)
        check_same(folder, straight)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("number", few(range(4), 0, 1))
def test_signals_at_any_line(tmp_path, straight, number, twice):
    check_signalled(tmp_path, straight, number, twice)


@pytest.mark.soak
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("number", range(4, 304))
def test_signals_at_any_line_of_many(tmp_path, straight, number, twice):
    check_signalled(tmp_path, straight, number, twice)
