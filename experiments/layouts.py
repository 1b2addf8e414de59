"""Claim: one device, two, two processes and two replicas of two processes train the same network from one seed.

    python experiments/layouts.py [--preset fashion] [--precision float64] [--steps 20] [--batch-size 9] [--scale 1]

SGD with momentum, dropout on, on synthetic images; the last batch of each epoch is one that two replicas cannot share
equally. Each layout starts from the same weights, the processes by torchrun. Expected, against one device: in float64
losses, gradients of the last step and weights within 1e-12 of their norm; in float32 losses within 1e-4. The
collectives of a tower group are counted where torch.distributed is called: 3 all-gathers and 1 gather forward, 3
reduce-scatters and 1 scatter backward a step, and their bytes are the table's.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture
from splitnet.network.execution import Execution
from splitnet.network.presets import preset, presets
from splitnet.network.weights import join
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel import ranks as processes
from splitnet.parallel.gradients import replicated
from splitnet.parallel.placement import host, place
from splitnet.parallel.ranks import Ranks
from splitnet.training.data import load
from splitnet.training.loop import train
from splitnet.training.optimizer import make_optimizer

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
TOLERANCES = {"float64": (1e-12, 1e-12, 1e-12), "float32": (1e-4, inf, inf)}
"""Of losses (in float32 absolute, else of their norm), gradients and weights (of their norm).

In float32 gradients are not judged: a relu or a pool maximum that rounding flips moves a whole one.
"""

A_STEP = {"all_gather": 3, "gather": 1, "reduce_scatter": 3, "scatter": 1}


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("fashion", "the network", presets())
    precision: str = option("float64", "of the training", tuple(PRECISIONS))
    steps: int = option(20, "steps of each layout")
    batch_size: int = option(9, "images in a step")
    scale: str = option("1", "of the layers' widths, such as 1/4")
    lr: float = option(0.01, "learning rate")
    out: Path | None = option(None, "where a process of a job leaves what it found; for the script's own use")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (2, 65536), "steps": (1, 10**6)})


class Counted:
    """While it is open, the tower group's collectives are counted at torch.distributed itself, and what they send."""

    def __init__(self, ranks: Ranks | None) -> None:
        self.group: Any = ranks and ranks.tower_group
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __enter__(self) -> Self:
        self._before = {kind: getattr(dist, kind) for kind in A_STEP}
        for kind in A_STEP:
            setattr(dist, kind, self._counting(kind))
        return self

    def __exit__(self, *_: object) -> None:
        for kind, function in self._before.items():
            setattr(dist, kind, function)

    def _counting(self, kind: str) -> Callable[..., Any]:
        def called(*args: Any, group: Any = None, **kwargs: Any) -> Any:
            if group is not None and group is self.group:
                self.calls[kind] += 1
                self.bytes += self._sent(kind, *args)
            return self._before[kind](*args, group=group, **kwargs)

        return called

    def _sent(self, kind: str, first: Any, second: Any) -> int:
        """By this rank to others: gather(x, list), all_gather(list, x), reduce_scatter(x, list), scatter(x, list)."""
        x = second if kind == "all_gather" else first
        others, home = self.group.size() - 1, self.group.rank() == 0
        times = {"gather": 0 if home else 1, "scatter": others if home else 0}.get(kind, others)
        return int(x.numel() * x.element_size() * times)


@dataclass(frozen=True, eq=False)
class Trained:
    """What a layout came to. Tensors are the whole network's, by name, on the CPU; empty beside the first process."""

    losses: list[float]
    images: list[int]
    padding: list[int]
    gradients: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    collectives: Mapping[str, int]
    bytes: int
    """That the collectives of all towers sent."""

    def save(self, path: Path) -> None:
        tensors = {f"gradients/{name}": t for name, t in self.gradients.items()}
        tensors |= {f"weights/{name}": t for name, t in self.weights.items()}
        rest = {name: value for name, value in vars(self).items() if name not in ("gradients", "weights")}
        save_file(tensors, path, {"rest": json.dumps(rest)})

    @classmethod
    def read(cls, path: Path) -> "Trained":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            rest: dict[str, Any] = json.loads(file.metadata()["rest"])
        kinds: dict[str, dict[str, Tensor]] = {"gradients": {}, "weights": {}}
        for name, tensor in load_file(path).items():
            kind, _, name = name.partition("/")
            kinds[kind][name] = tensor
        return cls(**rest, gradients=kinds["gradients"], weights=kinds["weights"])


def trained(
    architecture: Architecture,
    dtype: torch.dtype,
    *,
    ranks: Ranks | None = None,
    devices: list[str] | None = None,
    steps: int,
    batch_size: int,
    lr: float,
    execution: Execution = Execution(),
) -> Trained:
    """Train one layout: this job's processes, or these devices."""
    net = host(architecture, place(architecture, devices, ranks), seed=3, execution=execution).to(dtype)
    count = 4 * batch_size + batch_size // 2 + (batch_size // 2 + 1) % 2  # an odd rest
    data = load("synthetic", size=architecture.size, seed=5, train=count, test=1, channels=architecture.channels)
    optimizer = make_optimizer(net.parameters(), "sgd", lr)
    model = replicated(net, ranks)
    with Counted(ranks) as counted:
        records = list(
            train(net, data.train, optimizer, batch_size=batch_size, seed=7, steps=steps, model=model, ranks=ranks)
        )
    gradients = [{name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in tower.named_parameters()}
                 for tower in net.hosted]  # fmt: skip
    shares = net.exchange.collect(gradients)
    return Trained(
        losses=[record.loss for record in records],
        images=[record.images for record in records],
        padding=[record.padding for record in records],
        gradients={} if shares is None else join(architecture, shares),
        weights=net.whole_state_dict(),
        collectives=dict(counted.calls),
        bytes=counted.bytes if ranks is None else sum(ranks.objects(counted.bytes, "bytes")),
    )


def differences(found: Trained, reference: Trained, relative_losses: bool) -> tuple[float, float, float]:
    """The largest difference of the losses, of any gradient and of any weight from the reference's."""
    a, b = (torch.tensor(one.losses, dtype=torch.float64) for one in (found, reference))
    losses = ((a - b).norm() / b.norm() if relative_losses else (a - b).abs().max()).item()
    pairs = ((found.gradients, reference.gradients), (found.weights, reference.weights))
    gradients, weights = (
        max(_relative(ours[name], tensor) for name, tensor in theirs.items()) for ours, theirs in pairs
    )
    return losses, gradients, weights


def _relative(found: Tensor, reference: Tensor) -> float:
    return ((found - reference).double().norm() / reference.double().norm()).item()


def table_of(options: Options) -> Architecture:
    table = preset(options.preset, 2)
    try:
        scale = Fraction(options.scale)
    except ValueError as error:
        raise UsageError(f"--scale {options.scale}: a fraction such as 1/4") from error
    return table if scale == 1 else table.scaled(scale)


def in_processes(count: int, argv: list[str]) -> Trained:
    """What a job of that many processes comes to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.safetensors"
        job = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        subprocess.run([*job, __file__, *argv, "--out", str(path)], check=True)
        return Trained.read(path)


def main() -> int:
    options = parse(Options, "experiments/layouts.py", __doc__ or "")
    table, dtype = table_of(options), PRECISIONS[options.precision]
    how: dict[str, Any] = {"steps": options.steps, "batch_size": options.batch_size, "lr": options.lr}
    if processes.launched() and options.out is not None:
        torch.set_num_threads(1)
        ranks = processes.join(2, [False] * processes.world(), processes.job_store(), timeout=600)
        found = trained(table, dtype, ranks=ranks, **how)
        if ranks.rank == 0:
            found.save(options.out)
        processes.leave()
        return 0
    print(f"{table.name}, {table.parameters:,} parameters, {options.precision}, {options.steps} steps", flush=True)
    reference = trained(table, dtype, devices=["cpu"], **how)
    first, last = reference.losses[0], reference.losses[-1]
    print(f"one device: loss {first:.4f} at the first step, {last:.4f} at the last; differences from it:", flush=True)
    layouts = {
        "two devices": lambda: trained(table, dtype, devices=["cpu", "cpu"], **how),
        "two processes": lambda: in_processes(2, sys.argv[1:]),
        "2x2 processes": lambda: in_processes(4, sys.argv[1:]),
    }
    right = [report(name, make(), reference, table, options) for name, make in layouts.items()]
    return 0 if all(right) else 1


def report(name: str, found: Trained, reference: Trained, table: Architecture, options: Options) -> bool:
    """Print a layout's line; whether it is within the tolerances."""
    worst = differences(found, reference, options.precision == "float64")
    text = ", ".join(
        f"{kind} {value:.1e}" for kind, value in zip(("losses", "gradients", "weights"), worst, strict=True)
    )
    right = all(value <= most for value, most in zip(worst, TOLERANCES[options.precision], strict=True))
    if found.collectives:
        size = PRECISIONS[options.precision].itemsize
        derived = table.bytes_exchanged(1) * (sum(found.images) + sum(found.padding)) * size // 4
        right &= found.collectives == {kind: count * options.steps for kind, count in A_STEP.items()}
        right &= found.bytes == derived
        a_step = ", ".join(f"{count / options.steps:g} {kind}" for kind, count in found.collectives.items())
        text += f"; a step {a_step}; {found.bytes:,} bytes, derived {derived:,}"
    print(f"{name}: {text}{'' if right else ' - NOT within the tolerances'}", flush=True)
    return right


if __name__ == "__main__":
    guarded(main)
