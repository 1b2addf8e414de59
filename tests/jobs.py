"""Several processes for a test: torchrun on this machine, and what became of it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
SMALL_RUN = TESTS / "small_run.py"


@dataclass(frozen=True)
class Ended:
    """A job that is over."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Our own lines on stderr, without their beginning."""
        return [
            line.removeprefix("splitnet: error: ")
            for line in self.err.splitlines()
            if line.startswith("splitnet: error: ")
        ]


def environment(**more: str) -> dict[str, str]:
    """One thread a process, and the tests' own modules."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"} | more


def words(world: int, *command: str | Path, options: tuple[str, ...] = ()) -> list[str]:
    """The command line of a job; a command that begins with -m is a module."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return [*torchrun, *options, *map(str, command)]


def ranks_of(job: "subprocess.Popen[str]") -> list[int]:
    """Process ids of a job's ranks, in order."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            words = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(word.removeprefix(b"RANK=")) for word in words if word.startswith(b"RANK=")]
        if parent == job.pid and ranks:
            found[ranks[0]] = int(process.name)
    return [found[rank] for rank in sorted(found)]


def torchrun(world: int, *command: str | Path, timeout: float = 300, **more: str) -> Ended:
    """Start a job and wait for its end."""
    done = subprocess.run(
        words(world, *command), capture_output=True, text=True, timeout=timeout, env=environment(**more), check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)
