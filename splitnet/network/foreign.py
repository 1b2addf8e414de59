"""Weights as other programs keep them: made a whole state of ours, and evaluated as those programs would.

| layout       | where from                           | preset      | what is not as here                           |
|--------------|--------------------------------------|-------------|-----------------------------------------------|
| caffe-npy    | bvlc_alexnet.npy of caffe-tensorflow | caffe       | kernels (k, k, in, out), fc6 reads (H, W, C)  |
| caffemodel   | models/bvlc_alexnet of BVLC/caffe    | caffe       | images are BGR, as in caffe-npy               |
| torchvision  | torchvision.models.alexnet           | torchvision | names                                         |
| textbook     | Dive-into-DL-PyTorch 5.6, AlexNet    | fashion     | names                                         |
| cuda-convnet | the code of 2012, and cuda-convnet2  | alexnet     | layers are of a tower; fc7 of b reads b first |

Each layout has two functions that share nothing: `whole` only moves numbers to where ours stand, and `logits` computes
with the numbers where they are, in PyTorch's plain operations, in the order that the other program gives them.
Neither touches a file. Images are ours everywhere: (B, C, S, S), RGB.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture, Row
from splitnet.network.weights import State


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """What a file holds, by its own names. Tensors are on the CPU."""

    layout: str
    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """cuda-convnet: the layers that a layer reads, one for each of its matrices."""
    keeps: Mapping[str, float] = field(default_factory=dict)
    """cuda-convnet: what an "hs" layer multiplies by in tests. One of type "dropout" does not: it makes up for the
    dropped units while training, as PyTorch does."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """splitnet: the options of the run that wrote it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way of keeping the weights of one network."""

    what: str
    preset: str
    towers: int
    last: str
    """The tensor that has a number for each class."""
    whole: Callable[[Architecture, Source], State]
    """A whole state, in float32. UsageError that names a tensor that is missing, of another shape, or not finite."""
    logits: Callable[[Source, Tensor], Tensor]
    """(B, 3, S, S) to (B, classes), as the other program has it."""

    def table(self, source: Source, architecture: Architecture) -> Architecture:
        """The architecture with as many classes as the file has."""
        last = source.tensors.get(self.last)
        return architecture.adapted(classes=last.numel() or None) if last is not None else architecture


class Shelf:
    """Tensors by their own names, each taken once, in the shape that the table implies."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.left = dict(tensors)

    def take(self, name: str, shape: tuple[int, ...], *others: tuple[int, ...]) -> Tensor:
        """In float32 and of `shape`; the same numbers may stand in one of the `others`."""
        if name not in self.left:
            raise UsageError(f"{name} is missing; {shape} is expected")
        tensor = self.left.pop(name)
        found = tuple(tensor.shape)
        if found not in (shape, *others):
            raise UsageError(f"{name} is {found}, not {shape}")
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise UsageError(f"{name} is {tensor.dtype}; floats are expected")
        if not tensor.isfinite().all():
            raise UsageError(f"{name} has values that are not finite")
        return tensor.detach().float().reshape(shape)

    def check_empty(self) -> None:
        """UsageError for a tensor that has no place in the network."""
        for name, tensor in self.left.items():
            raise UsageError(f"{name!r}, {tuple(tensor.shape)}, has no place in it")


# Caffe: https://github.com/BVLC/caffe, models/bvlc_alexnet/deploy.prototxt.


def from_caffe_npy(architecture: Architecture, source: Source) -> State:
    shelf, state = Shelf(source.tensors), State()
    for row in architecture.rows():
        out, *inner = row.weight_shape
        if row.layer.kernel:
            reads, *kernel = inner
            weight = shelf.take(f"{row.name} weights", (*kernel, reads, out)).permute(3, 2, 0, 1)
        else:
            weight = shelf.take(f"{row.name} weights", (*inner, out)).T
            if row.side > 1:
                weight = weight.unflatten(1, (row.side, row.side, row.channels)).permute(0, 3, 1, 2).flatten(1)
        state[f"{row.name}.weight"] = weight
        state[f"{row.name}.bias"] = shelf.take(f"{row.name} biases", (out,))
    return _from_bgr(shelf, state)


def from_caffemodel(architecture: Architecture, source: Source) -> State:
    """Blobs of before 2014 have four sizes each: (1, 1, out, in) and (1, 1, 1, out)."""
    shelf, state = Shelf(source.tensors), State()
    for row in architecture.rows():
        shape = row.weight_shape
        legacy = () if row.layer.kernel else ((1, 1, *shape),)
        state[f"{row.name}.weight"] = shelf.take(f"{row.name} weights", shape, *legacy)
        state[f"{row.name}.bias"] = shelf.take(f"{row.name} biases", shape[:1], (1, 1, 1, shape[0]))
    return _from_bgr(shelf, state)


def _from_bgr(shelf: Shelf, state: State) -> State:
    """The first kernels read red first here, and blue first in Caffe."""
    shelf.check_empty()
    state["conv1.weight"] = state["conv1.weight"].flip(1)
    return {name: tensor.contiguous() for name, tensor in state.items()}


@dataclass(frozen=True, slots=True)
class _Stage:
    """A convolution of bvlc_alexnet, and what follows its relu."""

    name: str
    stride: int = 1
    padding: int = 0
    groups: int = 1
    norm: bool = False
    pool: bool = False


_BVLC = (
    _Stage("conv1", stride=4, norm=True, pool=True),
    _Stage("conv2", padding=2, groups=2, norm=True, pool=True),
    _Stage("conv3", padding=1),
    _Stage("conv4", padding=1, groups=2),
    _Stage("conv5", padding=1, groups=2, pool=True),
)


def caffe_npy_logits(source: Source, images: Tensor) -> Tensor:
    """Maps are (B, H, W, C). Pooled maps come out whole, so that Caffe's rounding up does not matter."""
    weights = source.tensors
    x = images.flip(1).permute(0, 2, 3, 1)
    for stage in _BVLC:
        pad = stage.padding
        kernels = weights[f"{stage.name} weights"].float()
        parts = F.pad(x, (0, 0, pad, pad, pad, pad)).chunk(stage.groups, dim=3)
        pairs = zip(parts, kernels.chunk(stage.groups, dim=3), strict=True)
        ys = [torch.einsum("bhwcij,ijco->bhwo", _windows(p, len(kernel), stage.stride), kernel) for p, kernel in pairs]
        x = (torch.cat(ys, dim=3) + weights[f"{stage.name} biases"].float()).relu()
        if stage.norm:
            x = x / (1 + 1e-4 / 5 * F.pad(x * x, (2, 2)).unfold(3, 5, 1).sum(-1)) ** 0.75
        if stage.pool:
            x = _windows(x, 3, 2).amax(dim=(-2, -1))
    x = x.flatten(1)
    for name in ("fc6", "fc7", "fc8"):
        x = x @ weights[f"{name} weights"].float() + weights[f"{name} biases"].float()
        x = x if name == "fc8" else x.relu()
    return x


def _windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, H, W, C) to (B, rows, columns, C, kernel, kernel)."""
    return x.unfold(1, kernel, stride).unfold(2, kernel, stride)


def caffemodel_logits(source: Source, images: Tensor) -> Tensor:
    blobs = {name: tensor.float() for name, tensor in source.tensors.items()}
    x = images.flip(1)
    for stage in _BVLC:
        bias = blobs[f"{stage.name} biases"].flatten()
        x = F.conv2d(x, blobs[f"{stage.name} weights"], bias, stage.stride, stage.padding, groups=stage.groups).relu()
        x = F.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if stage.norm else x
        x = F.max_pool2d(x, 3, 2) if stage.pool else x
    for name in ("fc6", "fc7", "fc8"):
        weight = blobs[f"{name} weights"]
        x = F.linear(x.flatten(1), weight.reshape(weight.shape[-2:]), blobs[f"{name} biases"].flatten())
        x = x if name == "fc8" else x.relu()
    return x


# Modules of PyTorch: their names in the order of our rows.

TORCHVISION = (*(f"features.{i}" for i in (0, 3, 6, 8, 10)), *(f"classifier.{i}" for i in (1, 4, 6)))
TEXTBOOK = (*(f"conv.{i}" for i in (0, 3, 6, 8, 10)), *(f"fc.{i}" for i in (0, 3, 6)))


def from_torchvision(architecture: Architecture, source: Source) -> State:
    return _renamed(architecture, source, TORCHVISION)


def from_textbook(architecture: Architecture, source: Source) -> State:
    return _renamed(architecture, source, TEXTBOOK)


def from_splitnet(architecture: Architecture, source: Source) -> State:
    return _renamed(architecture, source, tuple(row.name for row in architecture.rows()))


def _renamed(architecture: Architecture, source: Source, theirs: tuple[str, ...]) -> State:
    shelf, state = Shelf(source.tensors), State()
    for row, name in zip(architecture.rows(), theirs, strict=True):
        state[f"{row.name}.weight"] = shelf.take(f"{name}.weight", row.weight_shape).contiguous()
        state[f"{row.name}.bias"] = shelf.take(f"{name}.bias", row.weight_shape[:1]).contiguous()
    shelf.check_empty()
    return state


def torchvision_logits(source: Source, images: Tensor) -> Tensor:
    """Of the module itself."""
    from torchvision.models import alexnet

    module: nn.Module = alexnet(num_classes=len(source.tensors["classifier.6.bias"]))
    module.load_state_dict(source.tensors)
    return module.eval()(images)


def textbook_logits(source: Source, images: Tensor) -> Tensor:
    """Of the module, with its numbers of channels and units taken from the weights."""
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}

    def conv(name: str, stride: int = 1, padding: int = 0) -> nn.Module:
        out, channels, kernel, _ = shapes[f"conv.{name}.weight"]
        return nn.Conv2d(channels, out, kernel, stride, padding)

    def linear(name: str) -> nn.Module:
        out, inputs = shapes[f"fc.{name}.weight"]
        return nn.Linear(inputs, out)

    module = nn.Module()
    module.conv = nn.Sequential(
        *(conv("0", stride=4), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(conv("3", padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(conv("6", padding=1), nn.ReLU(), conv("8", padding=1), nn.ReLU(), conv("10", padding=1), nn.ReLU()),
        nn.MaxPool2d(3, 2),
    )
    module.fc = nn.Sequential(
        *(linear("0"), nn.ReLU(), nn.Dropout(0.5), linear("3"), nn.ReLU(), nn.Dropout(0.5), linear("6"))
    )
    module.load_state_dict(source.tensors)
    module.eval()
    return module.fc(module.conv(images).flatten(1))


# cuda-convnet: layers-145.cfg of github.com/computerhistory/AlexNet-Source-Code, and layers-imagenet-2gpu-model.cfg of
# cuda-convnet2. A convolution's matrix is (channels * k * k, kernels), a fully connected layer's (inputs, outputs); a
# layer that reads both towers has a matrix for each, in the order of its inputs.

_LAYERS: dict[str, tuple[str, ...]] = {f"conv{i}": (f"conv{i}a", f"conv{i}b") for i in range(1, 6)}
_LAYERS |= {"fc6": ("fc2048a", "fc2048b"), "fc7": ("fc2048ba", "fc2048bb"), "fc8": ("fc1000",)}
_OWN_FIRST = ("fc2048bb",)
"""Its inputs are (hs1b, hs1a). All others that read both towers read (a, b)."""
_HALVED = {"fc7": "hs1", "fc8": "hs2"}
"""The layers that drop units in front of a row, one a tower."""


def from_cuda_convnet(architecture: Architecture, source: Source) -> State:
    """Kernels of tower a first, and of each its inputs from tower a first.

    What "hs" multiplies an activation by in tests is done by the network, if its dropout scales in tests; else it goes
    into the weights that read it: then logits are the same, but these weights train on by another rate.
    """
    shelf, state = Shelf(source.tensors), State()
    for row in architecture.rows():
        layers = _LAYERS[row.name]
        kernels = [_kernels(shelf, source, row, layer, architecture) for layer in layers]
        state[f"{row.name}.weight"] = torch.cat(kernels).contiguous()
        out = row.layer.out // row.holders
        biases = [shelf.take(f"{layer} biases", (out,), (out, 1), (1, out)) for layer in layers]
        state[f"{row.name}.bias"] = torch.cat(biases)
    shelf.check_empty()
    return state


def scales_in_tests(architecture: Architecture, source: Source) -> bool:
    """Whether all units that are dropped are multiplied in tests by the share that lives, as 2012's recipe does."""
    keeps = {source.keeps.get(f"{layer}{tower}") for layer in _HALVED.values() for tower in "ab"}
    return keeps == {1 - architecture.dropout}


def _kernels(shelf: Shelf, source: Source, row: Row, layer: str, architecture: Architecture) -> Tensor:
    """(out, in, k, k) or (out, in) of one layer."""
    done = 1 - architecture.dropout if architecture.dropout_scales == "testing" else 1.0
    order = "ba" if layer in _OWN_FIRST else "ab" if row.crosses else layer[-1]
    _check_inputs(source, row, layer, order)
    _, reads, *kernel = row.weight_shape
    size = (reads // len(order) * (kernel[0] ** 2 if kernel else 1), row.layer.out // row.holders)
    parts = {}
    for i, tower in enumerate(order):
        matrix = shelf.take(f"{layer} weights[{i}]", size).T
        if row.name in _HALVED:
            matrix = matrix * (source.keeps.get(f"{_HALVED[row.name]}{tower}", 1.0) / done)
        parts[tower] = matrix.unflatten(1, (-1, *kernel)) if kernel else matrix
    return torch.cat([parts[tower] for tower in sorted(parts)], dim=1)


def _check_inputs(source: Source, row: Row, layer: str, order: str) -> None:
    """UsageError if the file says that the layer reads other towers, or in another order."""
    if layer not in source.inputs or row.name == "conv1":  # which reads the images
        return
    found = [re.fullmatch(r"[a-z]+[0-9]+([ab])(_neuron.*)?", name) for name in source.inputs[layer]]
    if [match and match[1] for match in found] != list(order):
        raise UsageError(f"{layer} reads {', '.join(map(repr, source.inputs[layer]))}, not towers {', '.join(order)}")


def cuda_convnet_logits(source: Source, images: Tensor) -> Tensor:
    """The layer file, line by line: towers a and b, each input's product by itself, as its inputs stand there."""

    def conv(layer: str, *inputs: Tensor, stride: int = 1, zeros: tuple[int, int] = (1, 1)) -> Tensor:
        x = sum(_filtered(source, f"{layer} weights[{i}]", x, stride, zeros) for i, x in enumerate(inputs))
        return x + source.tensors[f"{layer} biases"].float().view(-1, 1, 1)

    def fc(layer: str, *inputs: Tensor) -> Tensor:
        x = sum(x @ source.tensors[f"{layer} weights[{i}]"].float() for i, x in enumerate(inputs))
        return x + source.tensors[f"{layer} biases"].float().flatten()

    def hs(layer: str, x: Tensor) -> Tensor:
        return x * source.keeps.get(layer, 1.0)

    towers = [conv(f"conv1{t}", images, stride=4, zeros=(0, 3)) for t in "ab"]
    towers = [_pool(_norm(x)).relu() for x in towers]
    towers = [conv(f"conv2{t}", x, zeros=(2, 2)).relu() for t, x in zip("ab", towers, strict=True)]
    towers = [_pool(_cnorm(_norm(x))) for x in towers]
    towers = [conv(f"conv3{t}", *towers).relu() for t in "ab"]
    towers = [conv(f"conv4{t}", x).relu() for t, x in zip("ab", towers, strict=True)]
    towers = [_pool(conv(f"conv5{t}", x)).relu().flatten(1) for t, x in zip("ab", towers, strict=True)]
    hs1a, hs1b = (hs(f"hs1{t}", fc(f"fc2048{t}", *towers).relu()) for t in "ab")
    hs2a = hs("hs2a", fc("fc2048ba", hs1a, hs1b).relu())
    hs2b = hs("hs2b", fc("fc2048bb", hs1b, hs1a).relu())
    return fc("fc1000", hs2a, hs2b)


def _filtered(source: Source, name: str, x: Tensor, stride: int, zeros: tuple[int, int]) -> Tensor:
    """(B, C, S, S) to (B, kernels, S', S'), with zeros left and top, right and bottom."""
    matrix = source.tensors[name].float()
    columns = F.unfold(F.pad(x, (*zeros, *zeros)), isqrt(len(matrix) // x.shape[1]), stride=stride)  # (B, C*k*k, S'*S')
    return (matrix.T @ columns).unflatten(2, (isqrt(columns.shape[2]), -1))


def _norm(x: Tensor) -> Tensor:
    return F.local_response_norm(x, 5, 1e-4, 0.75, 2.0)


def _cnorm(x: Tensor) -> Tensor:
    return x / (1 + 1e-3 * F.avg_pool2d(x * x, 5, 1, 2)) ** 0.75


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


LAYOUTS = {
    "caffe-npy": Layout(
        *("bvlc_alexnet as caffe-tensorflow keeps it", "caffe", 2, "fc8 biases"), from_caffe_npy, caffe_npy_logits
    ),
    "caffemodel": Layout(
        *("bvlc_alexnet as Caffe keeps it", "caffe", 2, "fc8 biases"), from_caffemodel, caffemodel_logits
    ),
    "torchvision": Layout(
        *("torchvision.models.alexnet", "torchvision", 1, "classifier.6.bias"), from_torchvision, torchvision_logits
    ),
    "textbook": Layout(*("the textbook's AlexNet", "fashion", 1, "fc.6.bias"), from_textbook, textbook_logits),
    "cuda-convnet": Layout(
        *("the code of 2012's layers-145", "alexnet", 2, "fc1000 biases"), from_cuda_convnet, cuda_convnet_logits
    ),
}


def layout_of(names: Mapping[str, Any]) -> str:
    """Whose names these are, of PyTorch's modules or ours ("splitnet")."""
    first = {name.partition(".")[0] for name in names}
    if first & {"features", "classifier"}:
        return "torchvision"
    return "textbook" if first & {"conv", "fc"} else "splitnet"
