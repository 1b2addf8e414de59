"""Weights as other programs keep them, made and written here without what reads them."""

from pathlib import Path

import numpy as np
import torch

from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset

SIDES = {"caffe": 99, "alexnet": 96, "fashion": 127, "torchvision": 127}
"""Images so small that pooled maps still come out whole, and fc6 reads more than one place."""


def narrow(name: str, towers: int, crosses: str | None = None) -> Architecture:
    """A preset an eighth as wide, for ten classes."""
    return preset(name, towers, crosses).adapted(classes=10).scaled(1 / 8, size=SIDES.get(name, 96))


def numbers(*shape: int, scale: float | None = None, seed: int = 0) -> np.ndarray:
    """Random, so large that activations keep their order of magnitude from row to row."""
    fan = np.prod(shape[:-1])
    generator = np.random.default_rng([seed, *shape])
    return (generator.standard_normal(shape) * (scale or np.sqrt(2 / fan))).astype(np.float32)


def caffe_npy(table: Architecture) -> dict[str, list[np.ndarray]]:
    """[(k, k, in, out) or (in, out), (out,)] for each row."""
    found = {}
    for i, row in enumerate(table.rows()):
        out, *inner = row.weight_shape
        shape = (*inner[1:], inner[0], out) if row.layer.kernel else (*inner, out)
        found[row.name] = [numbers(*shape, seed=i), numbers(out, scale=0.1, seed=i)]
    return found


def as_caffe_blobs(layers: dict[str, list[np.ndarray]], side: int) -> dict[str, list[np.ndarray]]:
    """The same function in Caffe's own order: (out, in, k, k) and (out, in), fc6's inputs channels first."""
    found = {}
    for name, (weight, bias) in layers.items():
        if weight.ndim == 4:
            weight = weight.transpose(3, 2, 0, 1)
        elif name == "fc6":
            places, out = weight.shape
            channels = places // side**2
            weight = weight.reshape(side, side, channels, out).transpose(3, 2, 0, 1).reshape(out, places)
        else:
            weight = weight.T
        found[name] = [np.ascontiguousarray(weight), bias]
    return found


def write_npy(path: Path, layers: dict) -> Path:
    with path.open("wb") as file:
        np.save(file, layers, allow_pickle=True)
    return path


# Protobuf by hand: https://protobuf.dev/programming-guides/encoding/.


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def field(number: int, content: bytes | str | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(values: np.ndarray, old: bool, double: bool = False) -> bytes:
    """A BlobProto; `old` ones have four sizes."""
    packed = field(8, values.astype("<f8").tobytes()) if double else field(5, values.astype("<f4").tobytes())
    if not old:
        return field(7, field(1, b"".join(map(varint, values.shape)))) + packed
    sizes = (1,) * (4 - values.ndim) + values.shape
    return b"".join(field(number, size) for number, size in enumerate(sizes, start=1)) + packed


def write_caffemodel(
    path: Path, blobs: dict[str, list[np.ndarray]], old: bool = False, double: bool = False, names: tuple[str, ...] = ()
) -> Path:
    """A NetParameter of layers (V1LayerParameter if `old`), after some without weights that it has as well."""
    net = field(1, "AlexNet")
    for name in ("data", *names, *blobs):
        content = b"".join(field(6 if old else 7, blob(values, old, double)) for values in blobs.get(name, ()))
        begin = field(2, "bottom") + field(4, name) + field(5, 4) if old else field(1, name) + field(2, "Convolution")
        net += field(2 if old else 100, begin + content + field(32 if old else 11, 0))
    path.write_bytes(net)
    return path


# PyTorch's modules.

INDICES = {
    "torchvision": {"features": (0, 3, 6, 8, 10), "classifier": (1, 4, 6)},
    "textbook": {"conv": (0, 3, 6, 8, 10), "fc": (0, 3, 6)},
}


def module_state(layout: str, table: Architecture) -> dict[str, torch.Tensor]:
    names = [f"{part}.{i}" for part, indices in INDICES[layout].items() for i in indices]
    found = {}
    for i, (row, name) in enumerate(zip(table.rows(), names, strict=True)):
        out, *inner = row.weight_shape
        found[f"{name}.weight"] = torch.from_numpy(numbers(*inner, out, seed=i)).movedim(-1, 0).contiguous()
        found[f"{name}.bias"] = torch.from_numpy(numbers(out, scale=0.1, seed=i))
    return found


# cuda-convnet: layer -> what it reads, as layers-145.cfg has it once each neuron is a layer of its own.

READS = {
    **{f"conv1{t}": ("data",) for t in "ab"},
    **{f"conv2{t}": (f"pool1{t}_neuron",) for t in "ab"},
    **{f"conv3{t}": ("pool2a", "pool2b") for t in "ab"},
    **{f"conv4{t}": (f"conv3{t}_neuron",) for t in "ab"},
    **{f"conv5{t}": (f"conv4{t}_neuron",) for t in "ab"},
    **{f"fc2048{t}": ("pool3a_neuron", "pool3b_neuron") for t in "ab"},
    "fc2048ba": ("hs1a", "hs1b"),
    "fc2048bb": ("hs1b", "hs1a"),
    "fc1000": ("hs2a", "hs2b"),
}
ROWS = dict(zip(READS, [name for i in range(1, 6) for name in (f"conv{i}",) * 2] + ["fc6"] * 2 + ["fc7"] * 2 + ["fc8"],
                strict=True))  # fmt: skip


def cuda_convnet(table: Architecture, hs: str | None = "hs", inputs: bool = True, keep: float = 0.5) -> dict:
    """A checkpoint: matrices (channels * k * k, kernels) and, in Fortran's order, (inputs, outputs)."""
    rows = {row.name: row for row in table.rows()}
    layers: dict[str, dict] = {"data": {"name": "data", "type": "data"}}
    for i, (name, reads) in enumerate(READS.items()):
        row = rows[ROWS[name]]
        out = row.layer.out // row.holders
        size = int(np.prod(row.weight_shape[1:])) // len(reads)
        conv = row.layer.kernel is not None
        weights = [
            numbers(size, out, scale=np.sqrt(2 / (size * len(reads))), seed=10 * i + j) for j in range(len(reads))
        ]
        bias = numbers(out, scale=0.1, seed=i)
        layers[name] = {
            "name": name,
            "type": "conv" if conv else "fc",
            "weights": weights if conv else [np.asfortranarray(weight) for weight in weights],
            "weightsInc": [np.zeros_like(weight) for weight in weights],
            "biases": bias[:, None] if conv else np.asfortranarray(bias[None]),
        }
        layers[name] |= {"inputs": list(reads)} if inputs else {}
    for name in ("hs1a", "hs1b", "hs2a", "hs2b") if hs else ():
        layers[name] = {"name": name, "type": hs, "keep": keep, "enable": 1, "inputs": ["fc2048a"]}
    scalars = [({"logprob": [np.float32(6.9), 0.9]}, 128)]
    return {"model_state": {"layers": layers, "epoch": 3, "train_outputs": scalars}, "op": None}
