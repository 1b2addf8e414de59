"""Contenders of `contenders.py` as `speed.py` sees them: processes that make a step when they are told to."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from contenders import CONTENDERS, Settings, command

from splitnet.measure.meter import OtherLoad


class DeadContenderError(Exception):
    """A contender's process ended, or does not answer as it should."""


@dataclass
class Contestant:
    """A contender seen from here: its processes, and what they told."""

    name: str
    settings: Settings
    folder: Path
    seconds: list[float] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    """The last answer of each process, with what it said before."""

    def __post_init__(self) -> None:
        recipe = CONTENDERS[self.name]
        self._errors = [self.folder / f"{self.name}-{rank}.txt" for rank in range(recipe.processes)]
        threads = max(1, self.settings.threads // recipe.processes)
        self._processes: list[subprocess.Popen[str]] = []
        for rank, errors in enumerate(self._errors):
            settings = replace(self.settings, rank=rank, store=str(self.folder / f"{self.name}-store"))
            with errors.open("w", encoding="utf-8") as stream:
                process = subprocess.Popen(
                    command(self.name, settings),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stream,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                    process_group=0,  # Ctrl-C is this process's to deal with
                )
            self._processes.append(process)
        self.told = [{} for _ in self._processes]

    def ask(self, what: str) -> list[dict[str, Any]]:
        """The answers of all processes. DeadContenderError if one gives none."""
        for process, errors in zip(self._processes, self._errors, strict=True):
            assert process.stdin is not None
            try:
                process.stdin.write(what + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                raise self._dead(process, errors) from None
        for told, process, errors in zip(self.told, self._processes, self._errors, strict=True):
            assert process.stdout is not None
            try:
                told |= json.loads(process.stdout.readline())
            except ValueError:
                raise self._dead(process, errors) from None
        return self.told

    def _dead(self, process: subprocess.Popen[str], errors: Path) -> DeadContenderError:
        try:
            status = process.wait(5)
        except subprocess.TimeoutExpired:  # it lives and answers nonsense
            process.kill()
            status = process.wait()
        lines = [line for line in errors.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return DeadContenderError(f"contender {self.name} ended ({how}){': ' + lines[-1].strip() if lines else ''}")

    def step(self) -> None:
        self.seconds.append(max(told["seconds"] for told in self.ask("step")))

    def end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()

    def computed(self) -> float:
        """Seconds of all cores so far."""
        return sum(told.get("computed", 0.0) for told in self.told)

    def resident(self) -> int | None:
        """Bytes at the peak, over those before the network was built."""
        if any(told.get("most") is None or told.get("before") is None for told in self.told):
            return None
        return sum(told["most"] - told["before"] for told in self.told)


class Contest:
    """All contenders' processes; whoever leaves it leaves none behind."""

    def __init__(self, names: Sequence[str], settings: Settings) -> None:
        self.names, self.settings, self.contestants = names, settings, list[Contestant]()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="splitnet-speed-")
        return self

    def __exit__(self, *_: object) -> None:
        for contestant in self.contestants:
            contestant.end()
        self._folder.cleanup()

    def prepare(self) -> None:
        for name in self.names:
            self.contestants.append(Contestant(name, self.settings, Path(self._folder.name)))
        for contestant in self.contestants:
            contestant.ask("prepare")

    def run(self, rounds: int) -> float | None:
        """Measure. Returns the cores that others kept busy meanwhile."""
        beside, before = OtherLoad(), sum(c.computed() for c in self.contestants)
        for _ in range(rounds):
            for contestant in self.contestants:
                contestant.step()
        other = beside.cores(sum(c.computed() for c in self.contestants) - before)
        for contestant in self.contestants:
            if len(contestant.told) == 1:
                contestant.ask("tensors")
        return other
