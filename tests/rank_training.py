"""Train in several processes and leave what came of it: `torchrun --nproc-per-node N tests/rank_training.py OUT WHAT`.

Rank 0 writes OUT/<case>.pt: losses, gradients of the last step, weights, what was exchanged and how often.
"""

import sys
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from layouts import small

from splitnet.network.architecture import Architecture
from splitnet.network.weights import join
from splitnet.parallel import ranks as processes
from splitnet.parallel.gradients import replicated
from splitnet.parallel.placement import host, place
from splitnet.parallel.ranks import Ranks
from splitnet.training.data import load
from splitnet.training.loop import evaluate, train
from splitnet.training.optimizer import make_optimizer

STEPS, BATCH, IMAGES = 20, 12, 55
"""The last batch of an epoch has 7 images, which two replicas cannot share equally."""


class Counted:
    """While it is open, the tower group's collectives are counted at torch.distributed itself, and what they send."""

    KINDS = ("all_gather", "reduce_scatter", "gather", "scatter")

    def __init__(self, ranks: Ranks | None) -> None:
        self.group = ranks and ranks.tower_group
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __enter__(self) -> "Counted":
        self.before = {kind: getattr(dist, kind) for kind in self.KINDS}
        for kind in self.KINDS:
            setattr(dist, kind, self.counting(kind))
        return self

    def __exit__(self, *_: object) -> None:
        for kind, function in self.before.items():
            setattr(dist, kind, function)

    def counting(self, kind: str):
        def called(*args: Any, group: Any = None, **kwargs: Any) -> Any:
            if group is not None and group is self.group:
                self.calls[kind] += 1
                self.bytes[kind] += self.sent(kind, *args)
            return self.before[kind](*args, group=group, **kwargs)

        return called

    def sent(self, kind: str, first: Any, second: Any) -> int:
        """By this rank to others: gather(x, list), all_gather(list, x), reduce_scatter(x, list), scatter(x, list)."""
        x = second if kind == "all_gather" else first
        others, home = self.group.size() - 1, self.group.rank() == 0
        times = {"gather": 0 if home else 1, "scatter": others if home else 0}.get(kind, others)
        return x.numel() * x.element_size() * times


def attempt(
    architecture: Architecture, dtype: torch.dtype, ranks: Ranks | None, devices: list[str] | None = None, lr=1e-2
) -> dict[str, Any]:
    """20 steps of SGD with momentum, dropout on, and a test; in this layout."""
    placement = place(architecture, devices, ranks)
    net = host(architecture, placement, seed=3).to(dtype)
    data = load("synthetic", size=architecture.size, seed=5, train=IMAGES, test=25, channels=architecture.channels)
    optimizer = make_optimizer(net.parameters(), "sgd", lr)
    model = replicated(net, ranks)
    with Counted(ranks) as counted:
        records = list(
            train(net, data.train, optimizer, batch_size=BATCH, seed=7, steps=STEPS, model=model, ranks=ranks)
        )
    trained = net.ledger.transfers()
    ledgers = [trained] if ranks is None else ranks.objects(trained, "ledgers")
    tested = evaluate(net, data.test, batch_size=BATCH, ranks=ranks)
    shares = net.exchange.collect([{n: p.grad for n, p in tower.named_parameters()} for tower in net.hosted])
    return {
        "losses": [record.loss for record in records],
        "accuracies": [record.accuracy for record in records],
        "images": [record.images for record in records],
        "padding": [record.padding for record in records],
        "gradients": {} if shares is None else join(architecture, shares),
        "weights": net.whole_state_dict(),
        "test": (tested.loss, tested.accuracy, tested.images),
        "exchanged": [list(astuple(t)) for own in ledgers for t in own],
        "collectives": dict(counted.calls),
        "bytes": sum(counted.bytes.values()) if ranks is None else sum(ranks.objects(counted.bytes.total(), "bytes")),
    }


def cases(towers: int) -> dict[str, tuple[Architecture, torch.dtype]]:
    """The networks that are trained, scaled down."""
    return {
        f"{name}-{towers}-{str(dtype).removeprefix('torch.')}": (small(name, towers), dtype)
        for name in ("fashion", "alexnet")
        for dtype in (torch.float64, torch.float32)
    }


def main(out: Path, towers: int) -> None:
    torch.set_num_threads(1)
    ranks = processes.join(towers, [False] * processes.world(), processes.job_store(), timeout=60)
    for name, (architecture, dtype) in cases(towers).items():
        found = attempt(architecture, dtype, ranks)
        if ranks.rank == 0:
            torch.save(found, out / f"{name}.pt")
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
