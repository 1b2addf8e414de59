"""What an optimizer remembers, in whole-network names and shapes: chunked among towers by the weights' own rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture
from splitnet.network.towers import SplitNet
from splitnet.network.weights import State, chunk, shapes
from splitnet.training.checkpoint import Checkpoint, check_fits
from splitnet.training.optimizer import SGD

KINDS: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.Adam: {"exp_avg", "exp_avg_sq", "step"},
    SGD: {"momentum_buffer"},
}
"""What each optimizer remembers of a parameter after its first update."""


def shares_of(net: SplitNet, optimizer: torch.optim.Optimizer) -> list[State]:
    """What is remembered of each tower hosted here, on the CPU, by name, such as "conv1.weight.exp_avg".

    Empty before the first update. On the CPU it is the optimizer's own memory: `join_shares` copies it.
    """
    return [
        {
            f"{name}.{kind}": value.detach().cpu()
            for name, parameter in tower.named_parameters()
            for kind, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        for tower in net.hosted
    ]


def join_shares(architecture: Architecture, shares: Sequence[Mapping[str, Tensor]]) -> State:
    """The whole network's from the shares of all towers in order, on the CPU. Counts, 0-dim, are tower 0's."""
    whole: State = {}
    for name in shapes(architecture):
        for key in shares[0]:
            if key.startswith(f"{name}."):
                parts = [share[key] for share in shares if key in share]
                whole[key] = torch.cat(parts).contiguous() if parts[0].dim() else parts[0].clone()
    return whole


def schedule_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's groups without their parameters, as JSON has them."""
    return [_plain(group) for group in optimizer.param_groups]


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in group.items() if key != "params"}


def load_optimizer(net: SplitNet, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Let an optimizer of the network's parameters remember what the checkpoint does: each tower its chunk.

    UsageError if it is another network's, another optimizer's, or of another dtype; nothing is changed then.
    """
    check_fits(checkpoint, net.architecture)
    kinds = _kinds(optimizer, checkpoint)
    dtype = next(net.parameters()).dtype
    for name, tensor in {**checkpoint.weights, **checkpoint.optimizer}.items():
        if tensor.dim() and tensor.dtype != dtype:
            raise UsageError(f"a checkpoint of another dtype: {name} is {tensor.dtype}, the network's are {dtype}")
    groups = _restored(optimizer, checkpoint.schedule)
    optimizer.state.clear()
    for kind in kinds:
        whole = {name: checkpoint.optimizer[f"{name}.{kind}"] for name in shapes(net.architecture)}
        for tower in net.hosted:
            counts = not next(iter(whole.values())).dim()
            share = whole if counts else chunk(net.architecture, whole, tower.indices)
            for name, parameter in tower.named_parameters():
                # device and memory format are the parameter's: fused updates go through both as they lie in memory
                empty = torch.empty((), dtype=share[name].dtype, device=parameter.device)
                held = empty if counts else torch.empty_like(parameter, requires_grad=False)
                optimizer.state[parameter][kind] = held.copy_(share[name])
    for group, numbers in zip(optimizer.param_groups, groups, strict=True):
        group.update(numbers)


def _kinds(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> list[str]:
    """The kinds of state in the checkpoint. UsageError unless they are the optimizer's."""
    found = {name.rpartition(".")[2] for name in checkpoint.optimizer}
    name, kept = type(optimizer).__name__, KINDS[type(optimizer)]
    if not any(group.get("momentum", True) for group in optimizer.param_groups):
        kept = set()  # SGD without momentum remembers nothing
    if found != (kept if checkpoint.step else set()):
        expected = ", ".join(sorted(kept)) or "nothing"
        held = ", ".join(sorted(found)) or "nothing"
        raise UsageError(
            f"the state of another optimizer: {held} after {checkpoint.step:,} steps; {name} keeps {expected}"
        )
    return sorted(found)


def _restored(optimizer: torch.optim.Optimizer, schedule: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The schedule's numbers for each group. UsageError unless it has the optimizer's, and no others.

    Flags, such as fused, are not restored: they must be the optimizer's where both have them.
    """
    name, groups = type(optimizer).__name__, optimizer.param_groups
    another = "the schedule of another optimizer"
    if len(schedule) != len(groups):
        raise UsageError(f"{another}: {len(schedule)} groups, not {len(groups)}")
    restored = []
    for group, saved in zip(groups, schedule, strict=True):
        own = _plain(group)
        if "velocity_lr" in own and "lr" in saved:  # written before the velocity held the rate: it was constant
            saved = {"velocity_lr": saved["lr"]} | saved
        for key in dict.fromkeys([*own, *saved]):
            if key not in own or key not in saved:
                if _count(own.get(key, saved.get(key))) is not None:
                    raise UsageError(f"{another}: {'it' if key in own else name} has no {key}")
            elif _count(own[key]) != _count(saved[key]) or (_count(own[key]) is None and own[key] != saved[key]):
                raise UsageError(f"{another}: its {key} does not fit {name}'s, {own[key]}")
        numbers = {key: saved[key] for key, value in own.items() if _count(value) is not None}
        restored.append({key: tuple(value) if isinstance(value, list) else value for key, value in numbers.items()})
    return restored


def _count(value: Any) -> int | None:
    """0 for a number of at least 0, the length of a list of them, None for anything else."""
    if isinstance(value, list):
        return len(value) if value and all(_count(item) == 0 for item in value) else None
    number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    return 0 if number else None
