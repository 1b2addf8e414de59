"""What ranks tell each other while they work: who they are, where they are, and what ends the job."""

import json
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

State = Literal["in", "lost", "ending", "done"]
"""A rank works, has seen a collective fail, has heard the verdict, or has left properly."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process as others see it."""

    host: str
    machine: str
    """Equal where process ids mean the same."""
    pid: int
    started: str
    """When, by the kernel's clock: a process id may be given again."""

    @classmethod
    def this(cls) -> Self:
        host = socket.gethostname()
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            machine = f"{boot} {Path('/proc/self/ns/pid').readlink()}"  # containers may share a host's name
            return cls(host, machine, os.getpid(), _kernel(os.getpid())[19])
        return cls(host, host, os.getpid(), "")  # no Linux

    @property
    def state(self) -> str:
        """A letter as in /proc, of a process on this machine; "" once it has ended."""
        if not self.started:
            return "R" if _exists(self.pid) else ""
        try:
            fields = _kernel(self.pid)
        except OSError:
            return ""
        return fields[0] if fields[19] == self.started and fields[0] not in "ZX" else ""

    @property
    def stopped(self) -> bool:
        return self.state in ("T", "t")

    @property
    def awake(self) -> bool:
        return self.state not in ("", "T", "t")

    def __str__(self) -> str:
        return f"({self.host}, pid {self.pid})"


def _kernel(pid: int) -> list[str]:
    """What /proc says: [0] state, [1] parent, [19] start of a process. OSError once it is gone, or without /proc."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def end_sibling(rank: int) -> None:
    """Kill the process that whoever started this one has started on this machine as that rank."""
    name = f"RANK={rank}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # processes come and go, and others' are not to be read
            pid = int(folder.name)
            if int(_kernel(pid)[1]) == os.getppid() and name in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank says of itself."""

    number: int
    places: int
    """How many it has been at; see Watch.at."""
    where: str
    state: State
    process: Process

    def write(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: bytes) -> Self:
        fields = json.loads(text)
        return cls(**fields | {"process": Process(**fields["process"])})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ends the job: the line, the rank it blames (None if that rank says it itself), everyone's exit status."""

    line: str
    blamed: int | None = None
    status: int = 1

    def write(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: bytes) -> Self:
        return cls(**json.loads(text))


def blame(rank: int, beat: Beat, what: str) -> Verdict:
    """That a rank did or suffered `what`, where it was last: "was killed, last seen in"."""
    return Verdict(f"rank {rank} {beat.process} {what} {beat.where}", rank)


def blame_who_hangs(beats: Mapping[int, Beat]) -> Verdict:
    """Why collectives time out while every rank beats: of those who do not wait, the one furthest behind hangs."""
    busy = [rank for rank, beat in beats.items() if beat.state in ("in", "done")]
    behind = min(busy or beats, key=lambda rank: beats[rank].places)
    if busy:
        return blame(behind, beats[behind], "hangs in")
    if len({beat.places for beat in beats.values()}) == 1:
        return Verdict(f"all ranks wait for each other in {beats[behind].where}")
    return blame(behind, beats[behind], "waits for others that wait for it; it is furthest behind, in")
