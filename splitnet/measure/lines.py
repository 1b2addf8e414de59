"""A file of lines that only grows, and has nothing but whole ones: not even a full disk costs a line."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


class Lines:
    """Lines added to a file, each whole at once.

    What cannot be written is held in memory, and written, in order, as soon as something can be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: list[bytes] = []
        self._file: int | None = None
        self._whole = 0
        """Bytes of the file that are whole lines."""
        self._torn = False
        """Whether something else may stand behind them."""

    @property
    def held(self) -> int:
        """Lines that could not be written yet."""
        return len(self._held)

    def append(self, line: str) -> None:
        """Add a line, given without its end. It is in the file when this returns, or held."""
        self._held.append(line.encode() + b"\n")
        with contextlib.suppress(OSError):  # close() tells
            self._write()

    def close(self) -> None:
        """Write what is held. OSError if that cannot be done; the file has whole lines even so."""
        try:
            if self._held:
                self._write()
        finally:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def keep(self, wanted: Callable[[bytes], bool]) -> None:
        """Leave out the lines that are not wanted, and half a line at the end; written aside and renamed."""
        self.close()
        if not self.path.exists():
            return
        *lines, _ = self.path.read_bytes().split(b"\n")
        write_whole(self.path, b"".join(line + b"\n" for line in lines if wanted(line)))

    def _write(self) -> None:
        """Write what is held; where that ends early, whole lines stay and half a one is cut off."""
        file = self._opened()
        self._cut_off(file)
        data, written = b"".join(self._held), 0
        try:
            while written < len(data):
                written += os.write(file, data[written:])
        finally:
            done = data.rfind(b"\n", 0, written) + 1
            self._whole += done
            del self._held[: data.count(b"\n", 0, done)]
            self._torn = written != done
            self._cut_off(file)

    def _cut_off(self, file: int) -> None:
        if self._torn:
            os.ftruncate(file, self._whole)
            self._torn = False

    def _opened(self) -> int:
        if self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            size = os.fstat(file).st_size
            self._torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # a kill left half a line
            self._whole = self.path.read_bytes().rfind(b"\n") + 1 if self._torn else size
            self._file = file
        return self._file


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file aside and rename it: whoever reads meanwhile, or after a kill, finds the old or the new one.

    OSError if it cannot be written: the old one stands, and nothing is left beside it.
    """
    aside = path.with_name(f".{path.name}.aside")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
