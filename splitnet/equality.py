"""Do two layouts compute the same function? Every row's output, gradients, weights and dropped units, compared.

The network is run as a user trains it, dropout on, for a few steps of SGD with momentum, from the same weights.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from splitnet.network.architecture import Architecture
from splitnet.network.execution import Execution
from splitnet.network.layers import Block, Moment
from splitnet.network.towers import SplitNet
from splitnet.network.weights import join
from splitnet.training.data import load, to_network
from splitnet.training.optimizer import make_optimizer

Tensors = dict[str, list[Tensor]]

STEPS = 3
LEARNING_RATE = 1e-3

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "float64": {"output": 1e-12, "gradient": 1e-12, "weights": 1e-12, "dropped": 0.0},
    # One relu or pool maximum that rounding flips moves a whole gradient in float32, but hardly an output.
    "float32": {"output": 1e-5, "gradient": 1e-2, "weights": 1e-4, "dropped": 0.0},
    # 10 bits of mantissa, and 8: a rounding of 2 ** -11 and 2 ** -9 in every product. Four times as many relus and
    # maxima flip in bf16, and move a gradient twice as far: by the root of their share.
    "tf32": {"output": 5e-3, "gradient": 1.5e-1, "weights": 1e-3, "dropped": 0.0},
    "bf16": {"output": 2e-2, "gradient": 3e-1, "weights": 2e-3, "dropped": 0.0},
}
"""The largest difference allowed, over the norm of what is compared; of dropped units, any."""

ON_THE_WIRE = {"float32": "float32", "float16": "tf32", "bf16": "bf16"}
"""A cast for the crossing rounds as products in that precision do."""


def tolerances(precision: str, execution: Execution) -> Mapping[str, float]:
    """The wider of a precision's and its wire's."""
    names = [precision] if execution.wire is None else [precision, ON_THE_WIRE[execution.wire]]
    return max((TOLERANCES[name] for name in names), key=lambda found: found["output"])


@dataclass(frozen=True)
class Trial:
    """What one layout computed, on the CPU: in whole-network shapes, for each step."""

    outputs: dict[str, list[Tensor]]
    """By row: (B, C, S, S) or (B, units) of every step."""
    gradients: dict[str, list[Tensor]]
    """By parameter, of every step."""
    weights: dict[str, Tensor]
    """By parameter, after the last step."""
    kept: dict[str, list[Tensor]]
    """By row with dropout: which units lived, of every step."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row's largest differences, relative to the norm of what the reference has."""

    row: str
    differences: dict[str, float] = field(default_factory=dict)

    def excess(self, tolerances: Mapping[str, float]) -> float:
        """The worst difference in multiples of its tolerance; above 1 is a failure."""
        return max(_excess(value, tolerances[kind]) for kind, value in self.differences.items())


def _excess(difference: float, tolerance: float) -> float:
    if tolerance == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / tolerance if difference == difference else float("inf")  # NaN differs from everything


def images(architecture: Architecture, count: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images (count, C, S, S) of the preset's own scale, and labels.

    At 0..1 a response norm divides by its constant and could be left out unnoticed; 2012 trained on 0..255.
    """
    size, channels, classes = architecture.size, architecture.channels, architecture.classes
    data = load("synthetic", size=size, seed=seed, train=count, test=1, channels=channels, classes=min(classes, count))
    batch = data.train.read(torch.arange(count))
    pixels = to_network(batch.images, size, dtype)
    if architecture.pixels != "0..1":
        pixels = 255 * pixels
        pixels -= pixels.mean(dim=0, keepdim=True)
    return pixels, batch.labels


def attempt(net: SplitNet, pixels: Tensor, labels: Tensor) -> Trial:
    """Train the network for STEPS steps on the same images, and keep what it computed."""
    trial = Trial({}, {}, {}, {})
    optimizer = make_optimizer(net.parameters(), "sgd", LEARNING_RATE)
    net.train()
    with _Watched(net) as seen:
        for step in range(STEPS):
            net.moment = Moment(net.moment.seed, step)
            optimizer.zero_grad(set_to_none=True)
            logits = net(pixels)
            F.cross_entropy(logits, labels.to(logits.device)).backward()
            optimizer.step()
            _append(trial.outputs, seen.pop("outputs"))
            _append(trial.kept, seen.pop("kept", {}))
            gradients = [{n: _gradient(p) for n, p in tower.named_parameters()} for tower in net.hosted]
            _append(trial.gradients, {name: [part] for name, part in join(net.architecture, gradients).items()})
    trial.weights.update(net.whole_state_dict())
    return trial


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _append(lists: dict[str, list[Tensor]], parts: Mapping[str, Sequence[Tensor]]) -> None:
    for name, tensors in parts.items():
        lists.setdefault(name, []).append(torch.cat(list(tensors), dim=1) if len(tensors) > 1 else tensors[0])


class _Watched:
    """While it lasts, what every block makes and which units it keeps is noted: kind -> row -> a tensor a tower."""

    def __init__(self, net: SplitNet) -> None:
        self.blocks = [block for tower in net.hosted for block in tower.children() if isinstance(block, Block)]
        self.seen: dict[str, dict[str, list[Tensor]]] = {}

    def __enter__(self) -> dict[str, dict[str, list[Tensor]]]:
        self.handles = [block.register_forward_hook(self._note_output) for block in self.blocks]
        for block in self.blocks:
            block.kept = self._noting(block)  # type: ignore[method-assign, assignment]
        return self.seen

    def __exit__(self, *_: object) -> None:
        for handle, block in zip(self.handles, self.blocks, strict=True):
            handle.remove()
            del block.kept

    def _note_output(self, block: Any, _: object, output: Tensor) -> None:
        self._note("outputs", block.row.name, output)

    def _noting(self, block: Block) -> Callable[[Tensor, Moment], Tensor]:
        kept = block.kept

        def noted(x: Tensor, moment: Moment) -> Tensor:
            mask = kept(x, moment)
            self._note("kept", block.row.name, mask)
            return mask

        return noted

    def _note(self, kind: str, row: str, tensor: Tensor) -> None:
        self.seen.setdefault(kind, {}).setdefault(row, []).append(tensor.detach().cpu())


def compare(architecture: Architecture, found: Trial, reference: Trial) -> list[Comparison]:
    """Every row's differences from the reference, relative to the norm of what it has there."""
    return [Comparison(row.name, dict(_differences(row.name, found, reference))) for row in architecture.rows()]


def _differences(row: str, found: Trial, reference: Trial) -> Iterator[tuple[str, float]]:
    names = (f"{row}.weight", f"{row}.bias")
    yield "output", _worst(found.outputs[row], reference.outputs[row])
    yield "gradient", _largest(_worst(found.gradients[name], reference.gradients[name]) for name in names)
    yield "weights", _largest(_worst([found.weights[name]], [reference.weights[name]]) for name in names)
    if row in reference.kept or row in found.kept:
        yield "dropped", _masks_differ(found.kept.get(row, []), reference.kept.get(row, []))


def _worst(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    return _largest(_relative(a, b) for a, b in zip(found, reference, strict=True))


def _largest(values: Iterable[float]) -> float:
    """The largest, and NaN if one of them is: `max` would drop it unless it came first."""
    return torch.tensor(list(values), dtype=torch.float64).max().item()


def _relative(found: Tensor, reference: Tensor) -> float:
    difference, norm = (found - reference).double().norm().item(), reference.double().norm().item()
    return difference / norm if norm else difference


def _masks_differ(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The share of units that one dropped and the other kept."""
    if [mask.shape for mask in found] != [mask.shape for mask in reference]:
        return 1.0  # not even as many were drawn
    return max((a != b).double().mean().item() for a, b in zip(found, reference, strict=True))


def identical(found: Trial, reference: Trial) -> list[str]:
    """Names of what is not equal bit for bit."""
    kinds: list[tuple[str, Tensors, Tensors]] = [
        ("output", found.outputs, reference.outputs),
        ("gradient", found.gradients, reference.gradients),
        ("kept", found.kept, reference.kept),
        ("weights", _alone(found.weights), _alone(reference.weights)),
    ]
    return [f"{kind} {n}" for kind, a, b in kinds for n in a | b if not _same_bits(a.get(n, []), b.get(n, []))]


def _alone(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: [tensor] for name, tensor in tensors.items()}


def _same_bits(found: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    """The same tensors to the sign of a zero. A NaN equals nothing: it proves nothing."""
    signs = [(torch.signbit(a), torch.signbit(b)) for a, b in zip(found, reference, strict=False)]
    equal = all(map(torch.equal, found, reference)) and all(torch.equal(a, b) for a, b in signs)
    return equal and len(found) == len(reference)


def across_the_seam(architecture: Architecture) -> Architecture:
    """The table whose response norms run over all towers' channels."""
    return replace(architecture, norm=replace(architecture.norm, across_towers=True))
