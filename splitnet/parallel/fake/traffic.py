"""Every copy between two devices, or between a device and the host: how often, how large, and from where.

Copies are counted, not listed, so that a long run takes no more memory than a short one: as many entries
as there are different (devices, size, phase, line of code).
"""

import sys
import sysconfig
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

Site = tuple[str, int]
"""A file and a line in it."""

_REMEMBERED = 1 << 16  # forward copies whose line a later backward can still find

_counts: Counter["Copy"] = Counter()
_forward_sites: dict[tuple[int, int], Site] = {}  # (thread, sequence number of the autograd node)
_is_foreign: dict[str, bool] = {}

_OWN = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy, or as many as look alike."""

    source: str  # "fake:0", "cpu"
    target: str
    bytes: int  # that travel over the link
    phase: str  # "forward", or "backward" while autograd runs a graph
    file: str  # the innermost frame outside PyTorch, the standard library and this package
    line: int


def record(source: str, target: str, nbytes: int, *, differentiable: bool) -> None:
    """Count a copy. `differentiable`: an autograd node was just made for it, and will copy back."""
    node: Any = torch._C._current_autograd_node()  # None outside of backward
    thread = threading.get_ident()
    # Where autograd itself copies back there is no frame of the user's: the forward copy's line stands in.
    forward_site = None if node is None else _forward_sites.get((thread, node._sequence_nr()))
    site = forward_site or _site(sys._getframe(1))
    if differentiable:
        _remember((thread, torch._C._autograd._get_sequence_nr() - 1), site)
    phase = "forward" if node is None else "backward"
    _counts[Copy(source, target, nbytes, phase, *site)] += 1


def copies() -> Counter[Copy]:
    """What was copied since the last `clear_copies`: how often each copy happened."""
    return Counter(_counts)


def clear_copies() -> None:
    """Forget the copies counted so far."""
    _counts.clear()


def _remember(key: tuple[int, int], site: Site) -> None:
    _forward_sites[key] = site
    if len(_forward_sites) > _REMEMBERED:
        del _forward_sites[next(iter(_forward_sites))]


def _site(frame: FrameType | None) -> Site:
    while frame is not None:
        file = frame.f_code.co_filename
        if not (_is_foreign[file] if file in _is_foreign else _classify(file)):
            return file, frame.f_lineno
        frame = frame.f_back
    return "<unknown>", 0


def _classify(file: str) -> bool:
    in_standard_library = file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file
    foreign = in_standard_library or file.startswith((_OWN, _TORCH, "<frozen"))
    _is_foreign[file] = foreign
    return foreign
