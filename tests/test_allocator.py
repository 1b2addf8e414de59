"""The allocator's setting saves page faults, and is left alone where it is someone else's business."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from quick import quick

from splitnet import allocator
from splitnet.allocator import KEPT, keep_freed_memory

ROOT = Path(__file__).parents[1]
needs_glibc = pytest.mark.skipif(allocator._glibc() is None, reason="the C library is not glibc")
needs_own_malloc = pytest.mark.skipif(
    allocator._glibc() is not None and "LD_PRELOAD" in os.environ, reason="LD_PRELOAD may bring another allocator"
)

MIB = 2**20
FAULTS = """
import resource, sys
from splitnet.allocator import keep_freed_memory
said = [keep_freed_memory() for _ in range(int(sys.argv[1]))]
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        for mib in (3, 40, 100):
            b"x" * (mib << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2)
print(faults(4), *said, sep="\\n")
"""
PAGES = 4 * 143 * MIB // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def python(code: str, *words: str, **variables: str) -> list[str]:
    """Lines that a fresh interpreter prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=ROOT, env=clean | variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


CHOSEN = [
    ("MALLOC_MMAP_THRESHOLD_", "65536"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
    ("MALLOC_MMAP_MAX_", "65536"),
    ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=65536"),
]


@needs_glibc
@needs_own_malloc
def test_freed_memory_is_used_again():
    [before] = python(FAULTS, "0")
    [after, said] = python(FAULTS, "1")
    assert said == KEPT
    assert int(before) > 0.5 * PAGES / 16  # a system with larger pages of its own takes fewer
    assert int(after) < int(before) / 50


@needs_glibc
@needs_own_malloc
def test_asking_twice_is_asking_once():
    [after, *said] = python(FAULTS, "2")
    assert said == [KEPT, KEPT]
    assert int(after) < 500


@needs_glibc
@pytest.mark.parametrize(("name", "value"), quick(CHOSEN, CHOSEN[-1]))
def test_what_the_user_set_stands(name, value):
    [faults, said] = python(FAULTS, "1", **{name: value})
    assert said == f"the allocator is as {name} has it"
    assert int(faults) > 500


@needs_glibc
@needs_own_malloc
@pytest.mark.parametrize("variable", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_what_is_set_of_something_else_is_no_hindrance(variable):
    assert python(FAULTS, "1", **variable)[1] == KEPT


ALLOCATOR = """
#include <errno.h>
#include <stddef.h>
extern void *__libc_memalign(size_t, size_t);
int posix_memalign(void **out, size_t alignment, size_t size) {
    *out = __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}
"""


@needs_glibc
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_another_allocator_is_named_and_left_alone(tmp_path):
    library, source = tmp_path / "libothermalloc.so", tmp_path / "other.c"
    source.write_text(ALLOCATOR)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    code = "from splitnet.allocator import keep_freed_memory; print(keep_freed_memory())"
    said = python(code, LD_PRELOAD=str(library))
    assert said == ["the allocator is libothermalloc.so: it is left as it is"]


class Elsewhere:
    """A C library without glibc's functions."""


def refuse(*_: object) -> Elsewhere:
    raise TypeError("there is no such library")


@pytest.mark.parametrize("library", [lambda *_: Elsewhere(), refuse])
def test_another_c_library_is_left_alone(monkeypatch, library):
    _forget(monkeypatch)
    monkeypatch.setattr(ctypes, "CDLL", library)
    assert keep_freed_memory() == "the allocator is not glibc's: it is left as it is"


class Refusing:
    """A glibc whose mallopt knows no such setting; the owner of each function is the same."""

    gnu_get_libc_version = dladdr = posix_memalign = staticmethod(lambda *_: 0)

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def mallopt(self, what: int, value: int) -> int:
        self.calls.append((what, value))
        return 0


def test_a_refusal_is_said(monkeypatch):
    _forget(monkeypatch)
    libc = Refusing()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: libc)
    monkeypatch.setattr(allocator, "_owner", lambda *_: "libc.so.6")
    assert keep_freed_memory().startswith("glibc refuses to keep freed memory")
    assert libc.calls == [(allocator.M_MMAP_MAX, 0)]


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set by the user."""
    for name in (*allocator.VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
