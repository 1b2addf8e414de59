"""What a run leaves behind: a folder of JSON that explains itself. No torch needed to read it."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from splitnet.errors import UsageError

SCHEMA = 1
"""Version of run.json, steps.jsonl and compare.json; raised when a field changes its meaning."""


class RunFolder:
    """One run's files: run.json, steps.jsonl, compare.json.

    Every line of steps.jsonl is written whole and flushed, so that whatever ends the run leaves whole records;
    the other files are written aside and renamed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._steps: TextIO | None = None

    @classmethod
    def create(cls, parent: Path, label: str) -> "RunFolder":
        """A new folder `<date>-<time>-<label>` in `parent`. UsageError if it cannot be written."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{label}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path = next(p for p in _numbered(parent / name) if _made(p))
        except OSError as error:
            raise UsageError(f"--out {parent}: cannot write there ({error.strerror})") from error
        return cls(path)

    def append(self, kind: str, record: Any) -> None:
        """Add a line to steps.jsonl; `kind` is "step" or "test"."""
        if self._steps is None:
            self._steps = (self.path / "steps.jsonl").open("a", encoding="utf-8")
        self._steps.write(json.dumps({"schema": SCHEMA, "kind": kind} | plain(record)) + "\n")
        self._steps.flush()

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write `name`.json in one piece."""
        text = json.dumps({"schema": SCHEMA} | plain(content), indent=2) + "\n"
        aside = self.path / f".{name}.json.aside"
        aside.write_text(text, encoding="utf-8")
        aside.replace(self.path / f"{name}.json")

    def close(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The records of a steps.jsonl, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    count = 1
    while True:
        count += 1
        yield path.with_name(f"{path.name}-{count}")


def _made(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def plain(value: Any) -> Any:
    """Dataclasses to dicts, and what JSON has no word for to its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def environment() -> dict[str, Any]:
    """Versions, commit, machine and its load: what a figure needs beside it."""
    return {
        "command": [sys.executable, *sys.orig_argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")},
        "commit": _commit(),
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "load": load(),
    }


def load() -> float | None:
    """Processes that wanted a core in the last minute, this one included; None where it is not told."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of this source tree, with "+" if it has been changed; None outside a clone."""
    here = Path(__file__).parent
    try:
        run = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
