"""How weights are updated: Adam, and SGD with momentum as the code of 2012 has it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

LEARNING_RATES = {"adam": 1e-3, "sgd": 1e-2}
"""Defaults: Adam's is the textbook's, SGD's the paper's."""

MOMENTUM = 0.9

Kind = Literal["first weight", "weights", "biases"]
"""What may have a rate of its own: the first row's weight (2012 freezes it in the end), the others', all biases."""


class SGD(torch.optim.SGD):
    """SGD whose velocity holds the rate, as in 2012: v <- momentum*v - lr*(gradient + decay*w); w <- w + v.

    PyTorch's velocity does not hold it, which is the same until the rate changes: there its buffer, -v/lr, is
    brought to the new rate. At rate 0 a parameter is not updated and its velocity stands: it is frozen.
    Source: github.com/computerhistory/AlexNet-Source-Code, src/weights.cu, 2f8b81f; the paper's section 5.
    """

    def __init__(self, parameters: Any, lr: float, momentum: float = MOMENTUM, weight_decay: float = 0.0) -> None:
        # fused: one pass instead of ten (convolutions' weights are copied besides); the same update to rounding
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
        for group in self.param_groups:
            group["velocity_lr"] = group["lr"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["lr"]:
                for parameter in group["params"]:
                    parameter.grad = None
            elif group["lr"] != group["velocity_lr"]:
                self._keep_velocity(group)
        return super().step(closure)

    def _keep_velocity(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            buffer = self.state[parameter].get("momentum_buffer") if parameter in self.state else None
            if buffer is not None:
                buffer.mul_(group["velocity_lr"] / group["lr"])
        group["velocity_lr"] = group["lr"]


@dataclass(frozen=True, slots=True)
class Update:
    """The rule by which weights are updated, and its numbers before any schedule."""

    optimizer: str = "adam"
    """A key of LEARNING_RATES."""
    lr: float | None = None
    """None: the optimizer's of LEARNING_RATES."""
    bias_lr: float | None = None
    """None: the weights'."""
    momentum: float = MOMENTUM
    """SGD's."""
    weight_decay: float = 0.0
    """Times the weight, added to the gradient."""
    decay_biases: bool = False
    by_kind: bool = False
    """Whether a schedule has a rate of its own for one kind of parameters."""

    @property
    def rate(self) -> float:
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    def rate_of(self, kind: Kind) -> float:
        return self.bias_lr if kind == "biases" and self.bias_lr is not None else self.rate

    @property
    def groups(self) -> int:
        """Of the optimizer: 1 where all parameters are treated alike, else one for each kind."""
        return 3 if self.by_kind or self.weight_decay or self.bias_lr is not None else 1

    def start(self, net: nn.Module) -> torch.optim.Optimizer:
        """An optimizer of all of a network's parameters, in one group if all are treated alike.

        Otherwise in a group for each kind, whose "kind" says which.
        """
        if self.groups == 1:
            return make_optimizer(net.parameters(), self.optimizer, self.lr, momentum=self.momentum)
        return make_optimizer(self._groups(net), self.optimizer, self.lr, momentum=self.momentum)

    def _groups(self, net: nn.Module) -> Iterator[dict[str, Any]]:
        sorted_by: dict[Kind, list[nn.Parameter]] = {"first weight": [], "weights": [], "biases": []}
        first = next(name for name, _ in net.named_parameters()).split(".")[-2:]
        for name, parameter in net.named_parameters():
            own = name.split(".")[-2:]
            kind: Kind = "first weight" if own == first else "biases" if own[-1] == "bias" else "weights"
            sorted_by[kind].append(parameter)
        for kind, parameters in sorted_by.items():
            decay = self.weight_decay if kind != "biases" or self.decay_biases else 0.0
            yield {"params": parameters, "lr": self.rate_of(kind), "weight_decay": decay, "kind": kind}


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    name: str,
    lr: float | None = None,
    momentum: float = MOMENTUM,
) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum; `name` is a key of LEARNING_RATES. Parameters, or groups of them as PyTorch's."""
    rate = LEARNING_RATES[name] if lr is None else lr
    if name == "adam":
        return torch.optim.Adam(parameters, lr=rate, fused=True)
    return SGD(parameters, rate, momentum)


def rates_of(optimizer: torch.optim.Optimizer) -> dict[Kind, float]:
    """The rate of each kind of parameters; of "weights" alone where there is a single group."""
    return {group.get("kind", "weights"): float(group["lr"]) for group in optimizer.param_groups}


def set_rates(optimizer: torch.optim.Optimizer, rates: dict[Kind, float]) -> None:
    """Give each group its kind's rate; a single group that of "weights"."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group.get("kind", "weights")]
