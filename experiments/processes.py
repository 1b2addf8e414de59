"""Claim: two processes of one thread train at least 0.90 as fast as one process of two threads with the whole network.

    python experiments/processes.py [--preset fashion] [--batch-size 64] [--rounds 12]

One job of two processes (gloo), in which the layouts alternate: the towers with a thread in each process; the whole
network in the first with two threads, while the second waits and computes nothing. Adam, float32. Ratios are taken
round by round, with their 99 % interval. Of the towers' steps also the share that a process spends in collectives:
from the call until it goes on, so that waiting for the other is in it. Run it on an idle machine of two cores.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from splitnet.comparison import WARM_UP, Contender, Training
from splitnet.measure.meter import Ratio
from splitnet.measure.records import load
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel import ranks as processes
from splitnet.parallel.placement import Placement, place
from splitnet.parallel.ranks import Ranks
from splitnet.rank_comparison import RankContender
from splitnet.training.data import batches
from splitnet.training.data import load as load_data

KINDS = ("all_gather", "gather", "reduce_scatter", "scatter")
THREADS = 2
"""Of the whole network; each of the two processes has one of them for its tower."""


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("fashion", "the network", presets())
    batch_size: int = option(64, "images in a step")
    rounds: int = option(12, "measured steps of each layout")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (1, 65536), "rounds": (2, 10**6)})


class Waiting:
    """Seconds that this process spends in the collectives of a group."""

    def __init__(self, group: Any) -> None:
        self.group, self.seconds = group, 0.0
        for kind in KINDS:
            setattr(dist, kind, self._timed(getattr(dist, kind)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, group: Any = None, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, group=group, **kwargs)
            finally:
                if group is not None and group is self.group:
                    self.seconds += time.perf_counter() - start

        return called


def measure(options: Options, ranks: Ranks) -> None:
    """Alternate, and let the first process print."""
    table = preset(options.preset, 2)
    data = load_data("fashion-mnist-small" if table.channels == 1 else "synthetic", size=table.size)
    table = table.adapted(data.channels, len(data.classes))
    [batch, *_] = batches(data.train, options.batch_size)
    training = Training([batch] * (WARM_UP + options.rounds), "adam", None, seed=0)
    before = load()
    waiting = Waiting(ranks.tower_group)
    torch.set_num_threads(1)
    towers = RankContender("towers", table, place(table, ranks=ranks), training, ranks=ranks)
    torch.set_num_threads(THREADS)
    single = Placement((ranks.device,), "the first process")
    whole = Contender("whole", table, single, training) if ranks.rank == 0 else None
    shares = []
    for number in range(WARM_UP, WARM_UP + options.rounds):
        torch.set_num_threads(1)
        waiting.seconds = 0.0
        towers.measure(number)
        shares.append(waiting.seconds / towers.samples[-1].wall)
        torch.set_num_threads(THREADS)
        ranks.meet("the whole network's turn")
        if whole is not None:
            whole.measure(number)
        ranks.meet("the towers' turn")
    everybody = ranks.objects(statistics.median(shares), "shares")
    if whole is None:
        return
    speed = Ratio.of(b.wall / a.wall for a, b in zip(towers.samples, whole.samples, strict=True))
    print(f"{table.name}, batch {options.batch_size}, load before {before}")
    print(
        f"two processes of one thread / one of two threads, whole network: {speed.median:.3f} times as fast"
        f" ({speed.least:.3f}-{speed.greatest:.3f}, n={speed.n}, 99 % {speed.low:.3f}-{speed.high:.3f})"
    )
    for contender in (towers, whole):
        print(f"  {contender.name}: {1000 * statistics.median(s.wall for s in contender.samples):.0f} ms a step")
    for rank, share in enumerate(everybody):
        print(f"  rank {rank} spends {100 * share:.1f} % of a step in collectives, waiting for the other included")
    print(f"  losses after the same steps differ by {abs(towers.losses[-1] - whole.losses[-1]):.1e}")


def main() -> int:
    options = parse(Options, "experiments/processes.py", __doc__ or "")
    if not processes.launched():
        job = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.run([*job, __file__, *sys.argv[1:]], env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    ranks = processes.join(2, [False] * processes.world(), processes.job_store(), timeout=600)
    measure(options, ranks)
    processes.leave()
    return 0


if __name__ == "__main__":
    guarded(main)
