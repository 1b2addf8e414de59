"""Arrays in pickles, read as data: an unpickler that knows arrays and plain containers, and nothing that can be run.

What a pickle names is answered from a table of ours, so that neither NumPy nor anything else is called with what the
file says: shapes, types and bytes are checked here. Arrays of NumPy 1 and 2, pickled by Python 2 or 3.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from math import prod
from typing import Any

import numpy as np

from splitnet.errors import UsageError


class _Refused(pickle.UnpicklingError):
    """A pickle asks for something that is neither an array nor a container."""


class _Kind:
    """numpy.dtype, as a pickle has it."""

    order = "="

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        if self.code in ("O", "O4", "O8"):
            return np.dtype(object)
        if not re.fullmatch(r"[fiub][1248]", self.code) or self.order not in tuple("<>=|"):
            raise pickle.UnpicklingError(f"numbers of type {self.code!r}")
        return np.dtype(self.order + self.code)


class Array:
    """numpy.ndarray, as a pickle has it."""

    values: np.ndarray[Any, Any] = np.empty(0, np.float32)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, kind, columns_first, raw = state
        self.fill(raw, kind, shape, "F" if columns_first else "C")

    def fill(self, raw: Any, kind: _Kind, shape: tuple[int, ...], order: str) -> None:
        dtype = kind.dtype
        if dtype == np.dtype(object):
            if not isinstance(raw, list) or len(raw) != prod(shape):
                raise pickle.UnpicklingError(f"{type(raw).__name__} for an array of objects, {shape}")
            flat = np.empty(len(raw), dtype)
            for i, item in enumerate(raw):
                flat[i] = item
        else:
            raw = raw.encode("latin1") if isinstance(raw, str) else raw  # as Python 2 wrote it
            flat = np.frombuffer(raw, dtype)
        self.values = flat.reshape(shape, order="F" if order == "F" else "C")


class _Ignored:
    """What stands for an object whose content is of no use here."""

    def __init__(self, *_: Any) -> None: ...
    def __setstate__(self, _: Any) -> None: ...


def _reconstruct(*_: Any) -> Array:
    return Array()


def _from_buffer(raw: Any, kind: _Kind, shape: tuple[int, ...], order: str) -> Array:
    array = Array()
    array.fill(raw, kind, shape, order)
    return array


def _scalar(kind: _Kind, raw: Any) -> Any:
    return _from_buffer(raw, kind, (), "C").values.item()


def _encode(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Kind,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}
"""All that a pickle may name, and what of ours it gets."""

_OPTIONS = ("options", "python_util.options")
"""The modules of cuda-convnet's command line, which each of its checkpoints holds as well: left out."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _Ignored if module in _OPTIONS else _KNOWN.get((module, name))
        if found is None:
            raise _Refused(f"asks for {f'{module}.{name}'!r}, which is no array and no plain container")
        return found


def load(file: BytesIO) -> Any:
    """What is pickled in a file from where it stands, with an `Array` for each array.

    UsageError, in one line, for a pickle that is damaged or asks for anything else.
    """
    try:
        return _Unpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise UsageError(f"{error}; nothing of it was run") from error
    except Exception as error:  # damaged pickles raise whatever the bytes lead to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"truncated, or no pickle of arrays ({reason})") from error
