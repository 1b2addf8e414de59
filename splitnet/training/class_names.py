"""What classes are called: an image folder's classes are folders, and ImageNet's folders are numbers."""

import re
from collections.abc import Sequence
from pathlib import Path

from splitnet.errors import UsageError


def read(path: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """A name for each folder, from a text file of one line a class. UsageError if it does not match.

    Lines that begin with the folders' names ("n01440764 tench, Tinca tinca", as ImageNet's lists have them; or with a
    comma or a tab between) may come in any order; where no line does, the lines are the names, in the order of the
    sorted folders.
    """
    option = f"--class-names {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{option}: cannot be read ({reason})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != len(folders):
        names = f"{len(lines):,} name{'s' * (len(lines) != 1)}"
        raise UsageError(f"{option}: {names} for {len(folders):,} classes; wanted is a text file, a line for each")
    named = dict(_parted(line) for line in lines)
    if not named.keys() & set(folders):
        return tuple(lines)
    for folder in folders:
        if folder not in named:
            raise UsageError(f"{option}: no line begins with {folder}, as others do with theirs")
    return tuple(named[folder] for folder in folders)


def compared(own: Sequence[str], weights: Sequence[str]) -> str:
    """Where names of images' classes are not those that weights have for theirs, in a sentence; "" if all are alike.

    UsageError for the same names in another order: each answer would be taken for another class. Other names may be of
    the same classes, as folders' and readable ones are.
    """
    first = next((i for i, names in enumerate(zip(own, weights, strict=False)) if names[0] != names[1]), None)
    if first is None:
        return ""
    names = f"class {first} is {own[first]!r} here, {weights[first]!r} there"
    if sorted(own) == sorted(weights):
        way_out = "rename the images' folders so that they sort as there, or the weights' classes (convert --classes)"
        raise UsageError(f"{names}: the same names in another order; {way_out}")
    return f"Names of classes are not the weights': {names}; they are taken for the same classes, in this order."


def _parted(line: str) -> tuple[str, str]:
    """A folder's name and its class's; of a line that is one word, that word is both."""
    folder, _, name = re.sub(r"[\s,]+", " ", line, count=1).partition(" ")
    return folder, name or folder
