"""Memory on the CPU that a step frees is kept for the next one.

glibc maps a block of 32 MiB and more anew each time it is asked for, smaller ones by a threshold that moves, and gives
it back when it is freed; the system then fills each of its pages with zeros, at every step again. Two settings of
mallopt(3) end that: no block has a map of its own, and what is free at the end of the heap stays there. The price:
blocks are cut in pieces that do not fit what is asked for next, so that a process has more resident at the peak of a
step (`experiments/speed.py` prints how much, for plain PyTorch too), and gives nothing back before its end.

Threads with an arena of their own (64 MiB at most) still map larger blocks; a step's blocks are not theirs, on fake
devices neither.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""From glibc's malloc.h. Not M_MMAP_THRESHOLD: older versions refuse one above 32 MiB."""

NEVER = -1
"""As M_TRIM_THRESHOLD: the end of the heap is not given back (mallopt(3))."""

VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
TUNABLES = tuple(f"glibc.malloc.{name}=" for name in ("mmap_threshold", "trim_threshold", "mmap_max", "top_pad"))
"""What a user may have set about the same, the latter in GLIBC_TUNABLES."""

KEPT = "glibc keeps freed memory (no maps for single blocks, no trimming)"


def keep_freed_memory() -> str:
    """Have glibc's malloc keep what is freed, from now on. Returns one line: that it does, or why it does not.

    For the start of a command. Does nothing where another allocator is in place, or where the user chose.
    """
    if chosen := _chosen():
        return f"the allocator is as {chosen} has it"
    libc = _glibc()
    if libc is None:
        return "the allocator is not glibc's: it is left as it is"
    if (owner := _owner(libc, "posix_memalign")) != _owner(libc, "gnu_get_libc_version"):
        return f"the allocator is {Path(owner).name}: it is left as it is"
    if libc.mallopt(M_MMAP_MAX, 0) != 1 or libc.mallopt(M_TRIM_THRESHOLD, NEVER) != 1:
        return "glibc refuses to keep freed memory (mallopt): the allocator is left as it is"
    return KEPT


def _chosen() -> str | None:
    """The variable by which the user set the same."""
    told = next((name for name in VARIABLES if name in os.environ), None)
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return told or ("GLIBC_TUNABLES" if any(name in tunables for name in TUNABLES) else None)


def _glibc() -> Any:
    """The C library of this process; None if it is another than glibc."""
    try:
        libc = ctypes.CDLL(None)
        _ = libc.gnu_get_libc_version, libc.mallopt, libc.dladdr
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return None
    return libc


class _Found(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _owner(libc: Any, function: str) -> str:
    """The library that a function comes from in this process: an allocator put before glibc's (LD_PRELOAD) shows."""
    found = _Found()
    address = ctypes.cast(getattr(libc, function), ctypes.c_void_p)
    return os.fsdecode(found.file or b"?") if libc.dladdr(address, ctypes.byref(found)) else "unknown"
