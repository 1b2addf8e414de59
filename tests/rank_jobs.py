"""Jobs of several ranks: started by torchrun, followed until the last of their processes has ended."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jobs import environment

WORKER = Path(__file__).with_name("ranks_worker.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
START_UP = 60
"""Seconds until the fault, at most: PyTorch's import on a busy machine, several times over."""


@dataclass(frozen=True)
class Outcome:
    status: int
    lines: list[str]
    """What splitnet said on stderr, of all processes."""
    out: str
    errors: str
    seconds: float
    """From the fault until no process was left."""
    left: list[str]
    """Processes that were still there when the time was over."""


class Job:
    """torchrun on this host, with `words` as what it is to run."""

    def __init__(self, ranks: int, words, folder: Path) -> None:
        mark = str(uuid.uuid4())
        self.tag = f"SPLITNET_JOB={mark}"
        self.out, self.errors = folder / "out", folder / "errors"
        command = [*TORCHRUN, "--standalone", "--nproc-per-node", str(ranks), *map(str, words)]
        with self.out.open("wb") as out:
            self.torchrun = subprocess.Popen(
                command,
                env=environment(SPLITNET_JOB=mark),
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )

    def processes(self) -> dict[int, str]:
        """All that belong to the job, guardians and orphans too: process id to command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.tag.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if words:  # else it has ended, and nobody has asked for its status yet
                        found[int(folder.name)] = words
        return found

    def ranks(self) -> dict[int, int]:
        """Rank to process id, of the workers that torchrun started."""
        found = {}
        for pid in self.processes():
            with suppress(OSError, ValueError):
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                rank = next((v for v in variables if v.startswith(b"RANK=")), None)
                if parent == self.torchrun.pid and rank:
                    found[int(rank.removeprefix(b"RANK="))] = pid
        return found

    def over(self, fault: float | None, within: float) -> Outcome:
        """Wait for the job's end, at most until `within` seconds after the fault; end what is left then.

        fault: by time.monotonic(); None if there is none, and the seconds are from now.
        """
        fault = fault or time.monotonic()
        try:
            _, errors = self.torchrun.communicate(timeout=max(0.1, fault + within - time.monotonic()))
        except subprocess.TimeoutExpired:
            errors = "(stderr was still open)"
        while self.processes() and time.monotonic() < fault + within:
            time.sleep(0.02)
        seconds = time.monotonic() - fault
        left = list(self.processes().values())
        self.kill()
        lines = [line for line in errors.splitlines() if line.startswith("splitnet:")]
        status = self.torchrun.wait()
        return Outcome(status, lines, self.out.read_text(), errors, seconds, left)

    def kill(self) -> None:
        while found := self.processes():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
            self.torchrun.poll()
        self.torchrun.wait()
        self.torchrun.stderr.close()


def moment(mark: Path, job: Job) -> tuple[float, int]:
    """When the fault was, by time.monotonic(), and the process id of the rank that had it."""
    deadline = time.monotonic() + START_UP
    while not (mark.exists() and re.fullmatch(r"\S+ \d+\n", mark.read_text())):
        assert job.torchrun.poll() is None, "the job ended before the fault"
        assert time.monotonic() < deadline, "the fault did not come"
        time.sleep(0.01)
    when, pid = mark.read_text().split()
    return float(when), int(pid)


def run_worker(
    folder: Path, ranks: int, timeout: float, kind: str, victim: int, steps: int = 10**6
) -> tuple[Outcome, int]:
    """A job whose rank `victim` has a fault in step 7, and that rank's process id."""
    mark = folder / "mark"
    job = Job(ranks, [WORKER, timeout, steps, kind, victim, 7, mark], folder)
    try:
        when, pid = moment(mark, job)
        return job.over(when, timeout), pid
    finally:
        job.kill()
