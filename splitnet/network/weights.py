"""Whole network to towers and back: chunking along the first dimension, and nothing else.

A whole state is a dict from the whole network's names, "conv1.weight" … "fc8.bias", to tensors of its shapes.
"""

import json
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture

State = dict[str, Tensor]

METADATA = "splitnet"
"""The entry in the metadata of a file of weights that says what they are of, as JSON."""

Initial = Literal["pytorch", "2012", "paper"]

DEVIATION, WIDER = 0.01, 0.03
WIDER_ROWS = ("conv3", "conv4", "conv5")
ONES = ("conv2", "conv4", "conv5")
"""Convolutions whose biases are 1 at first, so that their relus see positive inputs."""


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a whole state, in order."""
    found: dict[str, tuple[int, ...]] = {}
    for row in architecture.rows():
        found[f"{row.name}.weight"] = row.weight_shape
        found[f"{row.name}.bias"] = row.weight_shape[:1]
    return found


def draw(architecture: Architecture, seed: int, initial: Initial = "pytorch") -> State:
    """Initial weights, drawn whole.

    "pytorch" is PyTorch's own: uniform within 1 / sqrt(inputs of one kernel). "2012" and "paper" are normal, with a
    standard deviation of 0.01 (2012: 0.03 in conv3, conv4, conv5), and biases of 1 in conv2, conv4, conv5 and the
    hidden fully connected rows, 0 in the others (2012: layers-145.cfg; paper: section 5).
    """
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    if initial != "pytorch":
        for row in architecture.rows():
            deviation = WIDER if initial == "2012" and row.name in WIDER_ROWS else DEVIATION
            weight = torch.empty(row.weight_shape).normal_(0, deviation, generator=generator)
            hidden = not row.layer.kernel and not row.layer.home
            bias = torch.full((row.layer.out,), float(hidden or row.name in ONES))
            state |= {f"{row.name}.weight": weight, f"{row.name}.bias": bias}
        return state
    for row in architecture.rows():
        weight = torch.empty(row.weight_shape)
        nn.init.kaiming_uniform_(weight, a=sqrt(5), generator=generator)
        bound = 1 / sqrt(weight[0].numel())
        bias = torch.empty(row.layer.out).uniform_(-bound, bound, generator=generator)
        state |= {f"{row.name}.weight": weight, f"{row.name}.bias": bias}
    return state


def read(path: Path, architecture: Architecture, pixels: str | None = None) -> State:
    """A whole state from a safetensors file. UsageError if there is none, or another network's.

    Or one for another dropout or, where `pixels` says what is read, for others, as far as the file tells (checkpoints'
    and `convert`'s do); or one of another preset of the same shapes: tests would be wrong without a word.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: {'not a file' if path.exists() else 'no such file'}")
    from safetensors import safe_open  # only who has weights to read needs the package

    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # safetensors' own error, or the system's; a header may even fail to decode
        convert = "; python -m splitnet.convert makes one of other programs' weights"
        raise UsageError(f"--weights {path}: not a safetensors file ({error}){convert}") from error
    try:
        check(architecture, state)
    except UsageError as error:
        raise UsageError(f"--weights {path}: {error}") from error
    here = {"preset": architecture.name, "dropout_scales": architecture.dropout_scales, "pixels": pixels}
    for name, value in here.items() if isinstance(told, dict) else ():
        if value is not None and told.get(name, value) != value:
            raise UsageError(f"--weights {path}: were made for --{name.replace('_', '-')} {told[name]}; say it")
    return state


def check(architecture: Architecture, state: Mapping[str, Tensor]) -> None:
    """UsageError unless the state's names and shapes are the architecture's."""
    expected = shapes(architecture)
    of = f"weights of another network, not of {architecture.name} with --towers {architecture.towers}"
    for name, shape in expected.items():
        if name not in state:
            raise UsageError(f"{of}: {name} is missing")
        if tuple(state[name].shape) != shape:
            raise UsageError(f"{of}: {name} is {tuple(state[name].shape)}, not {shape}")
        if not state[name].is_floating_point():
            raise UsageError(f"{name} is {str(state[name].dtype).removeprefix('torch.')}, not floating-point numbers")
    for name in state:
        if name not in expected:
            raise UsageError(f"{of}: {name} has no place in it")


def fits(architecture: Architecture, state: Mapping[str, Tensor]) -> bool:
    """Whether the state is one of this architecture."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes(architecture)


def chunk(architecture: Architecture, state: Mapping[str, Tensor], towers: Sequence[int]) -> State:
    """The share of these towers: one, or all of them in one piece."""
    check(architecture, state)
    share: State = {}
    for row in architecture.rows():
        for name in (f"{row.name}.weight", f"{row.name}.bias"):
            if not row.layer.home:
                parts = state[name].chunk(architecture.towers)
                share[name] = parts[towers[0]] if len(towers) == 1 else state[name]
            elif 0 in towers:
                share[name] = state[name]
    return share


def fill(tower: nn.Module, share: State) -> None:
    """Give a tower its share, wherever it is."""
    tower.load_state_dict(share)


def join(architecture: Architecture, shares: Sequence[Mapping[str, Tensor]]) -> State:
    """The whole state from the shares of all towers in order, on the CPU."""
    return {
        name: torch.cat([share[name].detach().cpu() for share in shares if name in share]).contiguous()
        for name in shapes(architecture)
    }
