"""Files of weights, read as data: nothing in them is ever run.

| container   | known by                       | read with                                            |
|-------------|--------------------------------|------------------------------------------------------|
| npy         | its first bytes                | NumPy's header; the pickle in it as below            |
| pickle      | its first byte                 | pickled_arrays                                       |
| caffemodel  | its name                       | google.protobuf, with the few fields that are needed |
| PyTorch     | its first bytes                | torch.load(weights_only=True)                        |
| safetensors | a length and a brace           | safetensors                                          |
| checkpoint  | a run's folder, or one of them | training.checkpoint, checksums and all               |
"""

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splitnet import pickled_arrays
from splitnet.errors import UsageError
from splitnet.measure.records import read_run
from splitnet.network.foreign import LAYOUTS, Source, layout_of
from splitnet.network.weights import METADATA
from splitnet.pickled_arrays import Array
from splitnet.training import checkpoint_files
from splitnet.training.checkpoint import Checkpoints

KINDS = (*LAYOUTS, "splitnet")
"""What a file may be said to be."""

_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
"""Archives of PyTorch 1.6 and later, and files of before."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")
"""What PyTorch says of a file that asks for more than tensors."""
_PARALLEL = "module."
"""What DataParallel and DistributedDataParallel put in front of names."""
_STEP = re.compile(r"step-([0-9]{10,19})")


def read(path: Path, kind: str | None = None) -> Source:
    """The weights in a file or a run's folder. UsageError, in one line, for whatever is not that.

    `kind` is one of KINDS; without it the file's contents decide, and for Caffe's protobuf, which has no first bytes of
    its own, the name.
    """
    try:
        checkpoint = _checkpoint(path)
        if checkpoint is None and not path.is_file():
            raise UsageError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        data = b"" if checkpoint else path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except MemoryError as error:
        raise UsageError(f"{path}: does not fit in memory") from error
    try:
        if checkpoint is not None:
            return _by_name("checkpoint", kind, checkpoint.weights, checkpoint.settings | _classes(path))
        return _read(path.suffix, data, kind)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _checkpoint(path: Path) -> checkpoint_files.Checkpoint | None:
    """Of a run's folder, of a checkpoint's, or of the weights in one; None for anything else."""
    folder = path.parent if path.name == checkpoint_files.WEIGHTS else path
    if (match := _STEP.fullmatch(folder.name)) and folder.is_dir():
        return checkpoint_files.read(folder, int(match[1]))
    return Checkpoints(path).last() if path.is_dir() else None


def classes_of(path: Path) -> tuple[str, ...]:
    """What a safetensors file, or the run of which it is a checkpoint's, calls its classes; () where nothing says."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        told = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    found = told.get("classes") if isinstance(told, dict) else None
    if not found and path.name == checkpoint_files.WEIGHTS and _STEP.fullmatch(path.absolute().parent.name):
        found = _classes(path).get("classes")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _classes(path: Path) -> dict[str, Any]:
    """What the run of a checkpoint calls its classes, where that can be read."""
    for folder in (path, *path.absolute().parents[:3]):
        with suppress(UsageError):
            return {"classes": found} if (found := read_run(folder).get("classes")) else {}
    return {}


def _read(suffix: str, data: bytes, kind: str | None) -> Source:
    if data.startswith(_TORCH):
        return _by_name("PyTorch", kind, _torch(data))
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
        return _by_name("safetensors", kind, *_safetensors(data))
    if data.startswith(b"\x93NUMPY"):
        found = "caffe-npy"
    elif data.startswith(b"\x80"):
        found = "cuda-convnet"
    elif suffix == ".caffemodel" or kind == "caffemodel":
        found = "caffemodel"
    else:
        raise UsageError(f"no whole file of weights that is known by itself (--from says which: {', '.join(KINDS)})")
    if kind not in (None, found):
        raise UsageError(f"--from {kind}: this is a file of {found}")
    return _READERS[found](data)


def _by_name(
    container: str, kind: str | None, tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None
) -> Source:
    """Of tensors that have the names of a PyTorch module's, or ours."""
    if kind in _READERS:
        raise UsageError(f"--from {kind}: this is a {container} file")
    return Source(kind or layout_of(tensors), tensors, settings=settings or {})


def _torch(data: bytes) -> dict[str, Tensor]:
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle have an error each, and long advice
        if asked := _GLOBAL.search(str(error)):
            wanted = "tensors alone are read: save the module's state_dict()"
            raise UsageError(f"asks for {_line(asked[1])!r}; {wanted}") from error
        raise UsageError("truncated, or not a PyTorch file of tensors alone") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found:
        raise UsageError(f"holds a {type(found).__name__}; tensors by name are expected")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UsageError(f"{_line(name)!r} is a {type(tensor).__name__}; tensors by name are expected")
    if all(name.startswith(_PARALLEL) for name in found):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in found.items()}
    return dict(found)


def _safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and what `convert` said of them when it wrote the file."""
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise UsageError("reading it needs the package safetensors: pip install safetensors") from error
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        settings = json.loads(header.get("__metadata__", {}).get(METADATA, "{}"))
    except Exception as error:  # safetensors' own error, Python's or PyTorch's
        raise UsageError(f"truncated, or not a safetensors file ({_line(error)})") from error
    return tensors, settings if isinstance(settings, dict) else {}


# NumPy's files and pickles.


def _npy(data: bytes) -> Source:
    """bvlc_alexnet.npy: a dict "conv1" … "fc8", each [weights, biases] or {"weights": …, "biases": …}."""
    file = io.BytesIO(data)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
            shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # a damaged header is parsed as Python, and fails as that
        raise UsageError(f"truncated, or no .npy that is known here ({_line(error)})") from error
    if shape or dtype != np.dtype(object):
        raise UsageError(f"an array of {dtype}, {shape}; a dict of layers is expected")
    found = pickled_arrays.load(file)
    layers = found.values.item() if isinstance(found, Array) and found.values.shape == () else found
    if not isinstance(layers, dict):
        raise UsageError(f"holds a {type(layers).__name__.lower()}; a dict of layers is expected")
    tensors: dict[str, Tensor] = {}
    for layer, pair in layers.items():
        parts = [pair.get("weights"), pair.get("biases")] if isinstance(pair, dict) else pair
        if not isinstance(parts, list | tuple) or len(parts) != 2:
            raise UsageError(f"{_line(layer)} is not [weights, biases]")
        tensors[f"{_line(layer)} weights"] = _tensor(f"{_line(layer)} weights", parts[0])
        tensors[f"{_line(layer)} biases"] = _tensor(f"{_line(layer)} biases", parts[1])
    return Source("caffe-npy", tensors)


def _cuda_convnet(data: bytes) -> Source:
    """{"model_state": {"layers": …}}: layers by name, or a list of them with names."""
    found = pickled_arrays.load(io.BytesIO(data))
    state = found.get("model_state") if isinstance(found, dict) else None
    layers = state.get("layers") if isinstance(state, dict) else None
    if isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers):
        layers = {layer.get("name"): layer for layer in layers}
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise UsageError("no checkpoint of cuda-convnet: there are no layers in its model_state")
    layers = {_line(name): layer for name, layer in layers.items()}
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for i, matrix in enumerate(_sequence(name, layer, "weights")):
            tensors[f"{name} weights[{i}]"] = _tensor(f"{name} weights[{i}]", matrix)
        if "biases" in layer:
            tensors[f"{name} biases"] = _tensor(f"{name} biases", layer["biases"])
    inputs = {
        name: tuple(map(_line, found)) for name, layer in layers.items() if (found := _sequence(name, layer, "inputs"))
    }
    halving = {name: layer.get("keep") for name, layer in layers.items() if layer.get("type") == "hs"}
    for name, keep in halving.items():
        if not isinstance(keep, float | int) or not 0 < keep <= 1:
            raise UsageError(f"{name} keeps {_line(keep)}; a share of the units is expected")
    return Source("cuda-convnet", tensors, inputs, {name: float(keep) for name, keep in halving.items()})


def _sequence(name: str, layer: Mapping[str, Any], key: str) -> list[Any] | tuple[Any, ...]:
    found = layer.get(key, ())
    if not isinstance(found, list | tuple):
        raise UsageError(f"{name} has a {type(found).__name__.lower()} of {key}; a list is expected")
    return found


def _tensor(name: str, found: Any) -> Tensor:
    if not isinstance(found, Array) or found.values.dtype == object:
        raise UsageError(f"{name} is a {type(found).__name__.lower()}; an array of numbers is expected")
    native = found.values.dtype.newbyteorder("=")
    return torch.from_numpy(found.values.astype(native, order="C"))


# Caffe's protobuf: https://github.com/BVLC/caffe, src/caffe/proto/caffe.proto.

_FIELDS = {
    "Net": {"layers": (2, "repeated", "OldLayer"), "layer": (100, "repeated", "Layer")},
    "OldLayer": {"name": (4, "bytes", ""), "blobs": (6, "repeated", "Blob")},
    "Layer": {"name": (1, "bytes", ""), "blobs": (7, "repeated", "Blob")},
    "Blob": {
        **{side: (number, "int64", "") for number, side in enumerate(("num", "channels", "height", "width"), start=1)},
        "data": (5, "bytes", ""),
        "shape": (7, "message", "Shape"),
        "double_data": (8, "bytes", ""),
    },
    "Shape": {"dim": (1, "sizes", "")},
}
"""Numbers and types of NetParameter, V1LayerParameter, LayerParameter, BlobProto and BlobShape, of which the others'
fields are skipped. Packed floats are read as bytes, which they are on the wire."""


def _net_message() -> Any:
    """The class that parses a NetParameter, made from the fields above."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    types = descriptor_pb2.FieldDescriptorProto
    kinds = {
        "bytes": (types.TYPE_BYTES, types.LABEL_OPTIONAL),
        "int64": (types.TYPE_INT64, types.LABEL_OPTIONAL),
        "sizes": (types.TYPE_INT64, types.LABEL_REPEATED),
        "message": (types.TYPE_MESSAGE, types.LABEL_OPTIONAL),
        "repeated": (types.TYPE_MESSAGE, types.LABEL_REPEATED),
    }
    file = descriptor_pb2.FileDescriptorProto(name="weights_of_caffe.proto", package="caffe")
    for message, fields in _FIELDS.items():
        entry = file.message_type.add(name=message)
        for name, (number, kind, of) in fields.items():
            type_, label = kinds[kind]
            field = entry.field.add(name=name, number=number, type=type_, label=label)
            if of:
                field.type_name = f".caffe.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Net"))


def _caffemodel(data: bytes) -> Source:
    try:
        net = _net_message().FromString(data)
    except ImportError as error:
        raise UsageError("reading it needs the package protobuf: pip install protobuf") from error
    except Exception as error:  # protobuf's own, of one of its implementations
        raise UsageError(f"truncated, or no caffemodel ({_line(error)})") from error
    layers = [(_line(layer.name.decode("utf-8", "replace")), layer.blobs) for layer in (*net.layer, *net.layers)]
    names = [name for name, _ in layers]
    if {"pool1", "norm1"} <= set(names) and names.index("pool1") < names.index("norm1"):
        raise UsageError("pool1 comes before norm1 in it: this is CaffeNet, not bvlc_alexnet")
    tensors = {
        f"{name} {what}": _blob(f"{name} {what}", blob)
        for name, blobs in layers
        for what, blob in zip(("weights", "biases"), blobs, strict=False)
    }
    if not tensors:
        raise UsageError("no layers with weights in it")
    return Source("caffemodel", tensors)


def _blob(name: str, blob: Any) -> Tensor:
    old = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else old
    raw, dtype = (blob.double_data, np.dtype("<f8")) if blob.double_data else (blob.data, np.dtype("<f4"))
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != len(raw):
        raise UsageError(f"{name} has {len(raw) // dtype.itemsize:,} numbers for a shape of {shape}")
    return torch.from_numpy(np.frombuffer(raw, dtype).astype(np.float32)).reshape(shape)


_READERS: Mapping[str, Callable[[bytes], Source]] = {
    "caffe-npy": _npy,
    "cuda-convnet": _cuda_convnet,
    "caffemodel": _caffemodel,
}


def read_classes(path: Path, classes: int) -> tuple[str, ...]:
    """A name for each class, from a text file of one line a class. UsageError if there are more or fewer."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--classes {path}: cannot be read ({reason})") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != classes:
        raise UsageError(f"--classes {path}: {len(names):,} names for {classes:,} classes")
    return names


def _line(found: object) -> str:
    """What a file or a library says, fit for one line of a terminal."""
    first = str(found).strip().partition("\n")[0]
    text = "".join(c if c.isprintable() else "?" for c in first)
    return text if len(text) <= 200 else f"{text[:200]}…"
