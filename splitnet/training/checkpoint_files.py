"""The files of one checkpoint: data in a folder with its checksums, and never code.

| file                  | holds                                                                     |
|-----------------------|---------------------------------------------------------------------------|
| weights.safetensors   | the whole network's weights, by its own names                             |
| optimizer.safetensors | the optimizer's state: "conv1.weight.momentum_buffer", of the same shapes |
| state.json            | schema, step, epoch, batch, settings, schedule                            |
| SHA256SUMS            | of these three, as sha256sum writes and checks them                       |

Right checksums prove that nothing was damaged, not that it is ours: what is read is checked all the same.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from splitnet.errors import UsageError
from splitnet.network.weights import METADATA, State

SCHEMA = 1
"""Version of state.json; raised when a field changes its meaning."""

WEIGHTS, OPTIMIZER, STATE, SUMS = "weights.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SCALARS = (torch.float32, torch.float64)
DEEPEST = 32
"""Levels that JSON of ours may nest."""
MOST_TEXT = 2**24
"""Bytes that state.json may have."""

_WEIGHT = re.compile(r"[A-Za-z0-9_]{1,100}\.(weight|bias)")
_STATE_OF = re.compile(r"([A-Za-z0-9_]{1,100}\.(?:weight|bias))\.([a-z_]{1,100})")


@dataclass(frozen=True, eq=False, slots=True)
class Checkpoint:
    """All that a training needs to go on as if it had never stopped. Tensors are on the CPU."""

    step: int
    """Updates made before it."""
    epoch: int
    """The epoch that the next step belongs to."""
    batch: int
    """Slices of that epoch's order already used: the position in the data."""
    settings: dict[str, Any]
    """JSON values: what defines the training. Given back as they were."""
    schedule: list[dict[str, Any]]
    """The optimizer's groups without their parameters: learning rate, momentum, …"""
    weights: State
    optimizer: State
    """What the optimizer remembers, in the whole network's shapes; Adam's count of steps is 0-dim. Empty at step 0."""


class DamagedError(UsageError):
    """A checkpoint that is not whole, or not ours. The line names the file and what is wrong."""


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Make the folder and its files, all flushed to the disk. OSError if that cannot be done."""
    state: dict[str, Any] = {"schema": SCHEMA, "step": checkpoint.step, "epoch": checkpoint.epoch}
    state |= {"batch": checkpoint.batch, "settings": checkpoint.settings, "schedule": checkpoint.schedule}
    _check_plain(state)  # a program's mistake shows when it saves, not when someone wants to go on
    usual = {"dropout_scales": "training", "pixels": "0..1"}  # what settings leave out
    told = {name: checkpoint.settings.get(name, value) for name, value in usual.items()}
    folder.mkdir()
    sums = [
        _written(folder / WEIGHTS, _encoded(checkpoint.weights, {METADATA: json.dumps(told)})),
        _written(folder / OPTIMIZER, _encoded(checkpoint.optimizer)),
        _written(folder / STATE, (json.dumps(state, indent=2) + "\n").encode()),
    ]
    _written(folder / SUMS, "".join(sums).encode())
    flush(folder)


def flush(folder: Path) -> None:
    """Have the disk hold the folder's names, as fsync does for a file's bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written(path: Path, data: bytes) -> str:
    """Write and flush a file. Returns its line in SHA256SUMS."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return _sum(path.name, data)


def _sum(name: str, data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()}  {name}\n"


def _encoded(state: State, metadata: dict[str, str] | None = None) -> bytes:
    try:
        from safetensors.torch import save  # only who saves needs the package
    except ImportError as error:
        raise UsageError("checkpoints need the package safetensors: pip install safetensors") from error
    return save(state, metadata)


def read(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of that step. DamagedError if it is not whole; UsageError if a later version wrote it."""
    if folder.is_symlink() or not folder.is_dir():
        raise DamagedError(f"{folder}: not a folder")
    contents = {name: _content(folder / name) for name in (WEIGHTS, OPTIMIZER, STATE, SUMS)}
    _check_sums(folder, contents)
    state = _state(folder / STATE, contents.pop(STATE))
    if state["step"] != step:
        raise DamagedError(f"{folder / STATE}: of step {state['step']:,}, in the folder of step {step:,}")
    weights = _tensors(folder / WEIGHTS, contents.pop(WEIGHTS))
    optimizer = _tensors(folder / OPTIMIZER, contents.pop(OPTIMIZER))
    try:
        _check_weights(weights)
    except ValueError as error:
        raise DamagedError(f"{folder / WEIGHTS}: {error}") from error
    try:
        check_optimizer({name: tuple(tensor.shape) for name, tensor in weights.items()}, optimizer)
        _check_values(optimizer, next(iter(weights.values())).dtype)
    except ValueError as error:
        raise DamagedError(f"{folder / OPTIMIZER}: {error}") from error
    return Checkpoint(**state, weights=weights, optimizer=optimizer)


def _content(path: Path) -> bytes:
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would keep us waiting, a link leads elsewhere
            raise DamagedError(f"{path}: not a file")
        if path.name in (STATE, SUMS) and found.st_size > MOST_TEXT:
            raise DamagedError(f"{path}: {found.st_size:,} bytes are too many for such a file")
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror})") from error
    except MemoryError as error:
        raise DamagedError(f"{path}: does not fit in memory") from error


def _check_sums(folder: Path, contents: Mapping[str, bytes]) -> None:
    """SHA256SUMS must be, to the byte, what `write` would have written."""
    expected = {name: _sum(name, data) for name, data in contents.items() if name != SUMS}
    found = contents[SUMS].decode("latin-1").splitlines(keepends=True)
    for name, line in expected.items():
        if line not in found:
            claimed = any(re.fullmatch(rf"[0-9a-f]{{64}}  {re.escape(name)}\n", other) for other in found)
            if claimed:
                raise DamagedError(f"{folder / name}: its SHA-256 is not the one in {SUMS}")
            raise DamagedError(f"{folder / SUMS}: no whole line for {name}")
    if found != list(expected.values()):
        raise DamagedError(f"{folder / SUMS}: not one line for each of the {len(expected)} files")


def _state(path: Path, data: bytes) -> dict[str, Any]:
    """The fields of state.json, without its schema number."""
    try:
        found = json.loads(data.decode("utf-8"))
        _check_plain(found)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: no JSON of ours ({_line(error)})") from error
    schema = found.pop("schema", None) if isinstance(found, dict) else None
    if type(schema) is not int or schema < 1:
        raise DamagedError(f"{path}: no record of splitnet's: no schema number")
    if schema > SCHEMA:
        raise UsageError(f"{path}: schema {schema}, but this version of splitnet reads up to {SCHEMA}")
    kinds = {"step": int, "epoch": int, "batch": int, "settings": dict, "schedule": list}
    for name, kind in kinds.items():
        if type(found.get(name)) is not kind or (kind is int and found[name] < 0):
            wanted = {int: "a whole number", dict: "a table", list: "a list"}[kind]
            raise DamagedError(f"{path}: {name}: {wanted} is wanted")
    if len(found) != len(kinds):
        raise DamagedError(f"{path}: {len(found) - len(kinds)} fields that have no place in it")
    if not all(isinstance(group, dict) for group in found["schedule"]):
        raise DamagedError(f"{path}: schedule: a list of tables is wanted")
    return found


def _check_plain(value: Any, depth: int = 0) -> None:
    """ValueError unless it is JSON that can be written, read, computed with and printed."""
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(str(key), depth + 1)
            _check_plain(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, depth + 1)
    elif isinstance(value, str):
        value.encode()  # half a surrogate pair cannot be printed
    elif isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{value} is no number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a number of more than 64 bits")


def _tensors(path: Path, data: bytes) -> State:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise UsageError(f"{path}: reading it needs the package safetensors: pip install safetensors") from error
    try:
        return load(data)
    except Exception as error:  # safetensors' own error, Python's, or PyTorch's; a header may even fail to decode
        raise DamagedError(f"{path}: not a safetensors file ({_line(error)})") from error


def _check_weights(weights: State) -> None:
    if not weights:
        raise ValueError("no weights in it")
    first, *_ = (tensor.dtype for tensor in weights.values())
    for name, tensor in weights.items():
        if not _WEIGHT.fullmatch(name):
            raise ValueError(f"{_line(name)!r} is no name of a weight")
        if tensor.dtype not in FLOATS or tensor.dtype != first:
            raise ValueError(f"{name} is {tensor.dtype}; weights are floats, all of one dtype")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def check_optimizer(shapes: Mapping[str, tuple[int, ...]], optimizer: State) -> None:
    """ValueError unless each kind of state is there for each parameter, of its shape or (all of a kind) 0-dim."""
    kinds: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in optimizer.items():
        match = _STATE_OF.fullmatch(name)
        if match is None or match[1] not in shapes:
            raise ValueError(f"{_line(name)!r} is no state of a weight of this network")
        kinds.setdefault(match[2], {})[match[1]] = tuple(tensor.shape)
    for kind, found in kinds.items():
        expected: Mapping[str, tuple[int, ...]] = dict.fromkeys(shapes, ()) if kind == "step" else shapes
        for name, shape in expected.items():
            if name not in found:
                raise ValueError(f"{name}.{kind} is missing")
            if found[name] != shape:
                raise ValueError(f"{name}.{kind} is {found[name]}, not {shape}")


def _check_values(optimizer: State, dtype: torch.dtype) -> None:
    """ValueError for a dtype that is not the weights', or for a value that training cannot go on from."""
    for name, tensor in optimizer.items():
        if tensor.dtype not in (SCALARS if not tensor.dim() else (dtype,)):
            raise ValueError(f"{name} is {tensor.dtype}, of weights of {dtype}")
        if tensor.isnan().any():  # an infinite mean of squares only stops its weight
            raise ValueError(f"{name} has values that are no numbers")
        if not tensor.dim() and not (0 <= tensor.item() < 2**63 and tensor.item() == int(tensor.item())):
            raise ValueError(f"{name} is {tensor.item()}, not a number of steps")


def _line(found: object) -> str:
    """What a file says, fit for one line of a terminal."""
    text = "".join(c if c.isprintable() else " " for c in str(found))
    return text if len(text) <= 200 else f"{text[:200]}…"
