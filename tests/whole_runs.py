"""`splitnet.run` on small networks, in this process and as another, and what it leaves in its folder."""

import contextlib
import io
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from damage import contents
from jobs import SMALL_RUN, environment
from layouts import small

from splitnet import job, run
from splitnet.measure.records import read_run, read_steps
from splitnet.parallel import fake
from splitnet.training.checkpoint import Checkpoints

QUIET = ("--no-compare", "--no-profile", "--no-look")
LENET = ("--preset", "lenet", "--towers", "1", "--data", "synthetic", "--batch-size", "200")
"""Batches of 200, 200, 112 images: three steps an epoch."""


@dataclass(frozen=True)
class Said:
    """What became of a command."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The only one on stderr, without its beginning."""
        assert self.err.startswith("splitnet: error: "), self.err
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("splitnet: error: ")[:-1]


def command(*words: object, install: bool = True) -> Said:
    """Run it here; KeyboardInterrupt that comes through is the test's to see."""
    if install:
        fake.install(2)
        fake.clear_copies()
    threads, preset = torch.get_num_threads(), job.preset
    out, err = io.StringIO(), io.StringIO()
    job.preset = small
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run.main(list(map(str, words)))
    finally:
        torch.set_num_threads(threads)
        job.preset = preset
    return Said(code, out.getvalue(), err.getvalue())


def made(out: Path, *words: object) -> Path:
    """The folder of a new run below `out`, which must end well."""
    said = command("--out", out, *words, *QUIET)
    assert (said.code, said.err) == (0, "")
    return folder_of(out)


def folder_of(out: Path) -> Path:
    [folder] = out.iterdir()
    return folder


def goes_on(folder: Path, *words: object) -> Said:
    said = command("--resume", folder, *words, *QUIET)
    assert (said.code, said.err) == (0, "")
    return said


def records(folder: Path, kind: str = "step") -> list[dict]:
    return [record for record in read_steps(folder / "steps.jsonl") if record["kind"] == kind]


def numbers(folder: Path) -> list[tuple]:
    """All that steps.jsonl says, but for times."""
    return [
        tuple((name, value) for name, value in record.items() if name not in ("seconds", "waited", "warms_up"))
        for record in read_steps(folder / "steps.jsonl")
    ]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder)]


def check_same(one: Path, other: Path) -> None:
    """Two runs trained alike, bit for bit: every record but for its seconds, and all that the last checkpoint holds."""
    assert numbers(one) == numbers(other)
    mine, theirs = Checkpoints(one).last(), Checkpoints(other).last()
    for name in ("step", "epoch", "batch", "settings", "schedule"):
        assert getattr(mine, name) == getattr(theirs, name), name
    for ours, others in ((mine.weights, theirs.weights), (mine.optimizer, theirs.optimizer)):
        assert ours.keys() == others.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, others[name]), name


def unchanged(folder: Path) -> Callable[[], bool]:
    """Says whether every file below it is to the byte what it is now."""
    before = contents(folder)
    return lambda: contents(folder) == before


class Process:
    """The command as a process of its own, which a test sends signals to. Leaving it ends it."""

    def __init__(self, *words: object, script: Path = SMALL_RUN) -> None:
        argv = [sys.executable, str(script), *map(str, words)]
        env = environment()
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_for(self, seen: Callable[[], object], seconds: float = 120) -> None:
        """Until something is there. The process must be alive then."""
        deadline = time.monotonic() + seconds
        while not seen():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = 120) -> Said:
        out, err = self.process.communicate(timeout=seconds)
        return Said(self.process.returncode, out, err)


KILLED = ("--preset", "lenet", "--towers", "1", "--data", "synthetic", "--batch-size", "16", "--save-every", "1")
"""For `kill`: 32 steps an epoch."""


def kill(out: Path, straight: Path, number: int) -> int:
    """Start a run, or go on with it, and kill -9 it at a random moment. Returns the steps that were saved.

    What it leaves must be as `straight`, which was never stopped, as far as it goes.
    """
    chance = random.Random(number)
    before = 0
    for folder in out.glob("*"):
        before = saved(folder)
        if not before:
            shutil.rmtree(folder)
    steps = read_run(straight)["options"]["steps"]
    words = ("--resume", folder_of(out)) if before else (*KILLED, "--steps", steps, "--out", out)
    with Process(*words, *QUIET) as process:
        if chance.random() < 0.8:
            process.wait_for(lambda: any(saved(folder) > before for folder in out.glob("*")))
            time.sleep(chance.uniform(0, 0.15))
        else:
            time.sleep(chance.uniform(0, 4))  # while it prepares
        process.send(signal.SIGKILL)
        assert process.ended().err == ""
    for folder in out.glob("*"):
        found = numbers(folder) if (folder / "steps.jsonl").exists() else []
        assert found == numbers(straight)[: len(found)]
        assert saved(folder) >= max(before, len(records(folder)) - 1 if found else 0)
        return saved(folder)
    return 0


def saved(folder: Path) -> int:
    """Steps of the last checkpoint."""
    return max(Checkpoints(folder).steps(), default=0)
