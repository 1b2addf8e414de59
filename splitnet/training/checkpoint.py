"""Checkpoints of a run: whatever stops it, at any moment, the last one saved is there whole.

| name in RUN/checkpoints    | is                                                          |
|----------------------------|-------------------------------------------------------------|
| step-0000000010            | a checkpoint: it has this name only once all is on the disk |
| .step-0000000010.aside     | one being written                                           |
| .step-0000000010.replaced  | whole, and about to be replaced by another of the same step |
| .step-0000000010.removed   | one being removed                                           |
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

from splitnet.errors import UsageError
from splitnet.network import weights
from splitnet.network.architecture import Architecture
from splitnet.training import checkpoint_files
from splitnet.training.checkpoint_files import Checkpoint, DamagedError

__all__ = ["Checkpoint", "Checkpoints", "DamagedError", "check_fits"]

_NAME = re.compile(r"(\.?)(step-([0-9]{10,19}))(\.aside|\.replaced|\.removed)?")


class Checkpoints:
    """The checkpoints of one run; the last `keep` stay."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.run = run
        self.folder = run / "checkpoints"
        self.keep = keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write one, and only then remove what is no longer kept. Returns its folder.

        Steps behind it are removed as well: whoever went back to an older one gave them up. OSError if it cannot
        be written: those before it stand, and nothing half-written is left.
        """
        name = _name(checkpoint.step)
        target, aside = self.folder / name, self.folder / f".{name}.aside"
        if not self.folder.is_dir():
            self.folder.mkdir()
            checkpoint_files.flush(self.run)
        self._clear()
        try:
            checkpoint_files.write(checkpoint, aside)
            if os.path.lexists(target):
                target.rename(self.folder / f".{name}.replaced")
            aside.rename(target)
        except BaseException:
            self._clear()
            raise
        checkpoint_files.flush(self.folder)
        self._clear()
        self._prune(checkpoint.step)
        return target

    def last(self) -> Checkpoint:
        """The newest. UsageError if there is none, if it is damaged or foreign, or if a later version wrote it."""
        try:
            if not self.run.is_dir():
                raise UsageError(f"{self.run}: {'not a folder' if self.run.exists() else 'no such folder'}")
            found = self._found()
            if not found:
                if not self.folder.exists() and not (self.run / "run.json").exists():
                    raise UsageError(f"{self.run}: no run's folder: it holds neither checkpoints nor run.json")
                raise UsageError(f"{self.folder}: no checkpoint there (a run's --save-every keeps them)")
            *older, newest = sorted(found)
            try:
                return checkpoint_files.read(found[newest], newest)
            except DamagedError as error:
                for step in reversed(older):
                    if _is_whole(found[step], step):
                        way_out = f"remove {found[newest]} to resume from {found[step].name}"
                        raise DamagedError(f"{error}; {way_out}") from error
                raise
        except OSError as error:
            raise UsageError(f"{error.filename or self.folder}: cannot be read ({error.strerror})") from error

    def steps(self) -> list[int]:
        """Steps of the folders that are there whole, ascending; what is in them is not read."""
        try:
            return sorted(step for step, path in self._found().items() if path.is_dir() and not path.is_symlink())
        except OSError:
            return []

    def _found(self) -> dict[int, Path]:
        """What stands for each step; also one that a kill left just before its successor had its name."""
        found: dict[int, Path] = {}
        for path in self.folder.iterdir() if self.folder.exists() else ():
            match = _NAME.fullmatch(path.name)
            if match is None or match[2] != _name(int(match[3])):
                continue
            if match[1] == "" and match[4] is None:
                found[int(match[3])] = path
            elif match[1] and match[4] == ".replaced":
                found.setdefault(int(match[3]), path)
        return found

    def _clear(self) -> None:
        """Put right what a kill left. What cannot be removed costs room, not the checkpoint; the next save tries it."""
        for path in list(self.folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match is None or not match[1] or match[4] is None:
                continue
            with contextlib.suppress(OSError):
                standing = self.folder / match[2]
                if match[4] == ".replaced" and not os.path.lexists(standing):
                    path.rename(standing)
                else:
                    self._remove(path, match[2])

    def _prune(self, step: int) -> None:
        with contextlib.suppress(OSError):
            found = self._found()
            kept = sorted(other for other in found if other <= step)[-self.keep :]
            for other in sorted(found, reverse=True):  # a kill among steps given up leaves the older of them
                if other not in kept:
                    self._remove(found[other], _name(other))

    def _remove(self, path: Path, name: str) -> None:
        """Rename, then remove: half a checkpoint never has the name of a whole one."""
        hidden = self.folder / f".{name}.removed"
        if path != hidden:
            _delete(hidden)
            path.rename(hidden)
        _delete(hidden)


def _name(step: int) -> str:
    return f"step-{step:010d}"


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_whole(folder: Path, step: int) -> bool:
    try:
        checkpoint_files.read(folder, step)
    except (UsageError, OSError):
        return False
    return True


def check_fits(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """UsageError that names the first name or shape that is not the architecture's."""
    weights.check(architecture, checkpoint.weights)
    try:
        checkpoint_files.check_optimizer(weights.shapes(architecture), checkpoint.optimizer)
    except ValueError as error:
        of = f"{architecture.name} with --towers {architecture.towers}"
        raise UsageError(f"optimizer state of another network, not of {of}: {error}") from error
