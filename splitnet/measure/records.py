"""What a run leaves behind: a folder of JSON that explains itself. No torch needed to read it."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from splitnet.errors import UsageError
from splitnet.measure.lines import Lines, write_whole

__all__ = [
    "SCHEMA",
    "NewerSchemaError",
    "RunFolder",
    "environment",
    "load",
    "plain",
    "read_compare",
    "read_learned",
    "read_records",
    "read_run",
    "read_steps",
    "timestamp",
    "write_whole",
]

SCHEMA = 1
"""Version of run.json, steps.jsonl, compare.json and learned.json; raised when a field changes its meaning."""


class RunFolder:
    """One run's files: run.json, steps.jsonl, compare.json, learned.json.

    Every line of steps.jsonl is written whole, so that whatever ends the run leaves whole records; on a full disk
    they are held until there is room. The other files are written aside and renamed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._steps = Lines(path / "steps.jsonl")

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

    @classmethod
    def reopen(cls, path: Path) -> "RunFolder":
        """The folder of a run that goes on; what it holds stands. UsageError if it is none, or cannot be written."""
        read_run(path)
        steps = path / "steps.jsonl"
        if not os.access(path, os.W_OK) or (steps.exists() and not (steps.is_file() and os.access(steps, os.W_OK))):
            raise UsageError(f"{path}: cannot write there")
        return cls(path)

    @property
    def held(self) -> int:
        """Records that could not be written yet."""
        return self._steps.held

    def append(self, kind: str, record: Any) -> None:
        """Add a line to steps.jsonl; `kind` is "step" or "test". What the disk has no room for is held."""
        self._steps.append(json.dumps({"schema": SCHEMA, "kind": kind} | plain(record)))

    def cut(self, step: int) -> None:
        """Go back to a checkpoint after `step` updates: later records are removed, and half a line at the end.

        Steps are numbered from 0, so step `step` is the first to go; a test after `step` updates stays.
        UsageError if steps.jsonl cannot be read, OSError if it cannot be written: it is left as it was.
        """
        path, gone = self._steps.path, False

        def stays(line: bytes) -> bool:
            nonlocal gone
            try:
                record = _parsed(line.decode(errors="replace"), path)
                _check(record, {"kind": str, "step": int}, path, "the record")
            except NewerSchemaError:
                raise
            except UsageError:
                return not gone  # no record: it goes with those around it
            gone = record["step"] >= step + (record["kind"] == "test")
            return not gone

        try:
            self._steps.keep(stays)
        except OSError as error:
            if path.is_file():
                raise
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error

    def set_aside(self, name: str) -> None:
        """Keep `name`.json, if there is one, where no page looks: it is not of the run as it goes on."""
        if (path := self.path / f"{name}.json").exists():
            path.replace(self.path / f"{name}-before.json")

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write `name`.json in one piece. OSError if there is no room: the old one stands."""
        text = json.dumps({"schema": SCHEMA} | plain(content), indent=2) + "\n"
        write_whole(self.path / f"{name}.json", text)

    def close(self) -> None:
        """Write what is held. OSError if there still is no room for it."""
        self._steps.close()


# What is read is checked: whoever opens a folder gets what the code writes, or one line that names the file.

SPREAD = {"median": float, "least": float, "greatest": float, "n": int}
SAID = {"layout": str, "towers?": int, "devices?": [str], "parameters?": int, "replicas?": int}
MEASURED = {
    "devices": [str],
    "images_per_second": SPREAD,
    "step_ms": SPREAD,
    "device_step_ms?": SPREAD,
    "exposed_ms?": SPREAD,
    "predicted?": {"step_ms": float, "exposed_ms": float, "peak": [int]},
    "samples?": [{"wall": float, "device?": float, "exposed?": float}],
    "ratio?": SPREAD | {"low?": float, "high?": float},
    "memory": {str: {"peak": int, "parameters": int, "gradients": int, "optimizer": int, "activations": int}},
    "exchanged": [{"row": str, "measured": float, "derived": float}],
    "loss_differences?": [float],
    "losses": [float],
}
"""What any layout, and one that was measured, says of itself; see `Contender.result`."""

RUN = {"status": str, "options": {"towers": int}, "devices": [{"device": str}], "layers?": [{"row": str}]}
RUN |= {"classes?": [str]}
STEP: dict[str, Any] = {"step": int, "loss": float, "accuracy": float, "images": int, "seconds": float}
STEP |= {"waited?": float, "warms_up?": bool, "views?": int, "rates?": {str: float}}

PICTURE, COUNT = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]*={0,2}"), range(1, 1 << 31)
ACCURACY = {"images": int, "accuracy": float, "silenced": [float]}
TOWERS = ACCURACY | {"step": int, "epoch": int, "orientation": [float], "colour?": [float], "similarity": {str: float}}
FILTERS = {"image": PICTURE, "width": COUNT, "height": COUNT}
IMAGE = {"place": int, "label": int, "name": str, "image": PICTURE}
CLASS = {"label": int, "name": str, "probability": float}
PREDICTION = IMAGE | CLASS | {"rank": int, "top": [CLASS]}
NEAREST = {"row": str, "among": int, "queries": [IMAGE | {"images": [IMAGE | {"distance": float}]}]}
END = {"step": int, "epoch": int, "filters": [FILTERS], "predictions?": [PREDICTION], "nearest?": NEAREST}
LEARNED = {"towers": COUNT, "row": str, "classes": COUNT, "not_shown?": {str: str}, "records": [TOWERS], "end?": END}
"""What was learned; see `looking`."""


class NewerSchemaError(UsageError):
    """Written by a later version, in which a field may mean something else."""


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a run folder. UsageError if the folder has none, or one that is not whole."""
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {what}; a run's folder is wanted")
    if not (folder / "run.json").exists():
        raise UsageError(f"{folder}: no run folder: it holds no run.json")
    return _read(folder / "run.json", RUN)


def read_compare(folder: Path) -> dict[str, Any]:
    """The compare.json of a run folder. UsageError if it is not there or not whole.

    A layout has the figures of MEASURED or a sentence `does_not_fit`.
    """
    path = folder / "compare.json"
    found = _read(path, {"base": str, "rounds": int, "other_load?": float, "layouts": [{"layout": str}]})
    if not found["layouts"]:
        raise UsageError(f"{path}: it compares no layouts")
    for number, layout in enumerate(found["layouts"]):
        shape: dict[str, Any] = {"does_not_fit": str} if "does_not_fit" in layout else MEASURED
        _check(layout, SAID | shape, path, f"layouts[{number}]")
    return found


def read_learned(folder: Path) -> dict[str, Any]:
    """The learned.json of a run folder. UsageError if it is not there or not whole.

    Pictures are data URIs and nothing else; whether a picture is in them, nobody has looked.
    """
    path = folder / "learned.json"
    found = _read(path, LEARNED)
    towers = found["towers"]
    for number, record in enumerate(found["records"]):
        kinds = (record["orientation"], record.get("colour") or record["orientation"], record["silenced"])
        if [len(kind) for kind in kinds] != [towers, towers, towers if towers > 1 else 0]:
            raise UsageError(f"{path}: records[{number}]: not a figure for each of {towers} towers")
    return found


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a steps.jsonl, steps and tests, in order. UsageError if it cannot be read."""
    return read_records(path, {})[0]


def read_records(path: Path, shape: Mapping[str, Any] = STEP) -> tuple[list[dict[str, Any]], str | None]:
    """The whole records of a steps.jsonl, and one line on what was left out; None if nothing was.

    A run that was cut off while it wrote leaves half a line at the end.
    """
    records, broken = [], []
    lines = _text(path, errors="replace").splitlines()  # a bad byte costs its line
    for number, line in enumerate(lines, 1):
        try:
            record = _parsed(line, path)
            _check(record, {"kind": str, **shape}, path, "the record")
        except NewerSchemaError:
            raise
        except UsageError:
            broken.append(number)
        else:
            records.append(record)
    if not broken:
        return records, None
    which = "the last line is" if broken == [len(lines)] else f"line {broken[0]:,} is"
    return records, f"{path}: {which} no whole record; {len(records):,} of {len(lines):,} are, and are kept"


def _read(path: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    found = _parsed(_text(path), path)
    _check(found, shape, path, "")
    return found


def _text(path: Path, errors: str = "strict") -> str:
    try:
        return path.read_text(encoding="utf-8", errors=errors)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start:,})") from error


def _parsed(text: str, path: Path) -> dict[str, Any]:
    """A JSON object of ours. UsageError if it is none, or of a schema that this version does not know."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no whole JSON ({str(error).partition(' (char')[0]})") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema is None or not _is(schema, int):
        raise UsageError(f"{path}: not a record of splitnet's: no schema number")
    if schema > SCHEMA:
        raise NewerSchemaError(f"{path}: schema {schema}, but this version of splitnet reads up to {SCHEMA}")
    return found


def _check(value: Any, shape: Any, path: Path, where: str) -> None:
    """UsageError that names the first place where `value` is not of this shape.

    A shape is a type, a list with the shape of its items, or a dict: of names that must be there ("name?" may be
    absent or null), or of {str: shape} for any names. float takes every finite number, a range its whole numbers, a
    pattern the texts that are it.
    """
    if isinstance(shape, range | re.Pattern):
        if not (_is(value, int) and value in shape if isinstance(shape, range) else _matches(shape, value)):
            what = f"a whole number from {shape[0]}" if isinstance(shape, range) else "a picture"
            raise UsageError(f"{path}: {where}: {what} is wanted")
        return
    if isinstance(shape, type):
        if not _is(value, shape):
            raise UsageError(f"{path}: {where}: {_NAMES[shape]} is wanted")
        return
    if not isinstance(value, type(shape)):
        raise UsageError(f"{path}: {where or 'the file'}: a {'list' if isinstance(shape, list) else 'table'} is wanted")
    if isinstance(shape, list):
        for number, item in enumerate(value):
            _check(item, shape[0], path, f"{where}[{number}]")
        return
    wanted = dict.fromkeys(value, shape[str]) if str in shape else shape
    for key, inner in wanted.items():
        name = key.removesuffix("?")
        here = f"{where}.{name}" if where else name
        if name == key and name not in value:
            raise UsageError(f"{path}: {here} is missing")
        if name == key or value.get(name) is not None:
            _check(value[name], inner, path, here)


_NAMES: dict[type, str] = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is(value: Any, kind: type) -> bool:
    if kind in (str, bool) or isinstance(value, bool):
        return isinstance(value, kind) and kind in (str, bool)
    return isinstance(value, int if kind is int else int | float) and -1e300 < value < 1e300  # so not NaN either


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
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],  # where it lies says nothing elsewhere
        "started": timestamp(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")},
        "commit": _commit(),
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "load": load(),
    }


def timestamp() -> str:
    """Now, with the offset from UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


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
