"""The file of an experiment's results: each trial is in it as soon as it has ended, and only such as belong together.

`results/NAME.json`, or `NAME-full.json`, holds the settings that all trials have alike, what each variant is, the
trials with all their figures, the machine and versions of each time that the command ran, and what the trials say of
each claim. A command that was interrupted goes on where it was, and one that asks for more seeds adds only these.
"""

import fcntl
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from trials import Epoch, Outcome

from splitnet.errors import UsageError
from splitnet.interrupts import Interrupts
from splitnet.measure.records import environment, plain, write_whole

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1
TUNING = 10**6
"""The seed from which a variant may be chosen among others: its trials are never judged."""


@dataclass
class ResultsFile:
    """Written in one piece, aside and renamed, at each change."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)
    _session: dict[str, Any] | None = None
    """When and where this command runs; noted with its first trial."""
    _lock: IO[str] | None = None
    """Held by this command, so that no other writes."""
    _fresh: bool = False
    """Whether it forgets what was there."""
    _interrupts: Interrupts = field(default_factory=Interrupts)
    """By which SIGTERM, too, is an interrupt that says what is kept."""

    @classmethod
    def open(cls, path: Path, experiment: str, fresh: bool = False) -> "ResultsFile":
        """What is there, or nothing yet. UsageError if it is of another experiment, or while another command has it.

        Leaving it as a context lets others have it, and says what is kept where it was interrupted.
        """
        lock = locked(path)
        try:
            content = read(path) if path.exists() and not fresh else {"experiment": experiment}
            if (other := content["experiment"]) != experiment:
                raise UsageError(f"{path}: results of {other}, not of {experiment}; --fresh forgets them")
        except UsageError:
            lock.close()
            raise
        return cls(path, {"schema": SCHEMA} | content, _lock=lock, _fresh=fresh)

    def __enter__(self) -> "ResultsFile":
        self._interrupts.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._interrupts.__exit__()
        if self._lock is not None:
            self._lock.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            kept = f"{counted(self.trials)} in {self.path.name}" if self.trials else "no trial has ended"
            again = " without --fresh" if self._fresh and self.trials else ""
            print(f"\nInterrupted: {kept}; the same command{again} goes on.", file=sys.stderr)

    def begin(self, settings: Mapping[str, Any], variants: Mapping[str, Any]) -> None:
        """Say what trials will be of. UsageError if those in the file are of something else."""
        wanted = {"settings": plain(dict(settings)), "variants": plain(dict(variants))}
        wanted = json.loads(json.dumps(wanted))
        stands = {trial["variant"] for trial in self.trials}
        if stands:
            old = {name: what for name, what in self.content["variants"].items() if name in stands}
            new = {name: what for name, what in wanted["variants"].items() if name in stands}
            pairs = ((self.content["settings"], wanted["settings"]), (old, new))
            for where, (before, now) in zip(("", "variant "), pairs, strict=True):
                if difference := first_difference(before, now, where):
                    raise UsageError(
                        f"{self.path}: holds trials of {difference}; --fresh forgets them, --out keeps both"
                    )
        self.content |= wanted
        self._session = plain(environment() | {"command": ["python", *command()]})

    def note(self) -> None:
        """That this command made what is in the file."""
        if self._session is not None:
            self.content["sessions"] = [*self.content.get("sessions", []), self._session]
            self._session = None

    @property
    def made_by(self) -> str:
        """The last command that made something of it."""
        return shlex.join(self.content["sessions"][-1]["command"])

    @property
    def trials(self) -> list[dict[str, Any]]:
        return list(self.content.get("trials", []))

    def outcomes(self, judged: bool = False) -> dict[str, dict[int, Outcome]]:
        """Variant -> seed -> outcome; only of those that are judged, or of all."""
        found: dict[str, dict[int, Outcome]] = {}
        for trial in self.trials:
            if judged and trial["seed"] == TUNING:
                continue
            found.setdefault(trial["variant"], {})[trial["seed"]] = outcome(trial["outcome"])
        return found

    def add(self, variant: str, seed: int, found: Outcome) -> None:
        """A trial that has ended; it is on the disk when this returns."""
        self.note()
        session = len(self.content["sessions"]) - 1
        trial = {"variant": variant, "seed": seed, "session": session, "outcome": plain(found)}
        self.content["trials"] = [*self.trials, trial]
        self.write()

    def conclude(self, **parts: Any) -> None:
        """What all of it comes to."""
        self.content |= plain(parts)
        self.write()

    def write(self) -> None:
        """UsageError if it cannot be."""
        put(self.path, written(self.content))


def put(path: Path, text: str) -> None:
    """A file in one piece. UsageError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


def locked(path: Path) -> IO[str]:
    """A file beside `path`, open and locked. UsageError if another command has it: each would lose the other's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UsageError(f"{path}: another command adds trials to it; wait for its end, or use --out") from error
    return file


def written(content: Mapping[str, Any]) -> str:
    """As JSON, in which each trial and each claim has a line."""
    parts = []
    for key, value in content.items():
        lines = [json.dumps(item, allow_nan=False) for item in value] if isinstance(value, list) and value else []
        text = "[\n  " + ",\n  ".join(lines) + "\n ]" if lines else json.dumps(value, allow_nan=False)
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read(path: Path) -> dict[str, Any]:
    """UsageError if it is no file of results."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path}: no whole JSON; remove it, or begin its experiment anew with --fresh") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "experiment" not in content:
        raise UsageError(f"{path}: no results of an experiment, or of another version")
    return content


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """`epochs 5, not 3`: where the first difference is; "" if there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{where}{key}" if not where or where.endswith(" ") else f"{where}.{key}"
            if key in old and key in new:
                if found := first_difference(old[key], new[key], inner):
                    return found
            else:
                return f"{inner} {'that is not there now' if key in old else 'that was not there'}"
        return ""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = (first_difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True)))
        return next(filter(None, parts), "")
    return "" if old == new else f"{where} {_short(old)}, not {_short(new)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def outcome(content: Mapping[str, Any]) -> Outcome:
    """An outcome as the file has it."""
    epochs = tuple(Epoch(**epoch) for epoch in content["epochs"])
    return Outcome(**{**content, "epochs": epochs, "curve": tuple(content["curve"])})


def command(argv: Sequence[str] | None = None) -> list[str]:
    """The script below the project's root, and its words; but for `--fresh`, by which one that copies it loses all."""
    script, *words = sys.argv if argv is None else argv
    return [f"experiments/{Path(script).name}", *(word for word in words if word != "--fresh")]


def counted(trials: Sequence[Any]) -> str:
    """`1 trial is`, `2 trials are`."""
    return "1 trial is" if len(trials) == 1 else f"{len(trials)} trials are"
