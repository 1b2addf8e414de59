"""Claim: the response norms' operators take at most half of the time of PyTorch's formulas, forward and backward.

    python experiments/response_norm.py [--batch-size 64] [--rounds 12] [--threads 2]

Three maps of AlexNet (one tower's, and both towers' on one device), float32, in alternation in one run: the operator,
the formula in PyTorch's operations, both channels-last, and torch.nn.LocalResponseNorm on a contiguous map. "channels"
are norms over neighbouring channels, the paper's; "places" the second norm of 2012's code, over neighbouring places of
a channel, which torch.nn does not have. Ratios are taken round by round; each line beside the formula says whether its
99 % interval (one round has none) lies at or below 0.5. Expected: that all do; run it on an idle machine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from splitnet.measure.meter import Layout, Ratio, Sample, alternate, ratio
from splitnet.measure.records import load
from splitnet.network import response_norm as norms
from splitnet.network.presets import PRESETS
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.reporting import counted

WARM_UP = 2
MOST = 0.5
"""Of the formula's time."""
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    batch_size: int = option(64, "images in a map")
    rounds: int = option(12, "measured passes of each way")
    threads: int = option(2, "CPU threads")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (1, 65536), "rounds": (1, 10**6), "threads": (1, 1024)})


def cases() -> dict[str, tuple[tuple[int, int], dict[str, Function]]]:
    """For each kind and map: its channels and side, and the ways to compute it."""
    table = PRESETS["alexnet"]
    norm, cnorm = table.norm, table.cnorm
    torchs = nn.LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k)

    def over_channels(towers: int) -> dict[str, Function]:
        return {
            "operator": lambda x: norms.response_norm(x, norm, towers),
            "formula": lambda x: norms.reference_response_norm(x, norm, towers),
            "nn": torchs if towers == 1 else lambda x: torch.cat([torchs(part) for part in x.chunk(towers, 1)], 1),
        }

    over_places: dict[str, Function] = {
        "operator": lambda x: norms.spatial_response_norm(x, cnorm),
        "formula": lambda x: norms.reference_spatial_response_norm(x, cnorm),
    }
    return {
        "channels 48x55x55": ((48, 55), over_channels(1)),
        "channels 96x55x55, 2 towers": ((96, 55), over_channels(2)),
        "channels 128x27x27": ((128, 27), over_channels(1)),
        "places 128x27x27": ((128, 27), over_places),
    }


def layout(name: str, function: Function, x: Tensor, grad: Tensor) -> Layout:
    """A forward and a backward, in the memory format in which `name` is at its best."""
    memory_format = torch.contiguous_format if name == "nn" else torch.channels_last
    x, grad = (tensor.contiguous(memory_format=memory_format) for tensor in (x, grad))
    x.requires_grad_()
    return Layout(name, (torch.device("cpu"),), lambda _: torch.autograd.grad(function(x), x, grad))


def verdict(found: Ratio) -> str:
    """Whether the claim is shown: never by a single round."""
    return f"at most {MOST:g}: {'shown' if found.high is not None and found.high <= MOST else 'not shown'}"


def main() -> None:
    options = parse(Options, "experiments/response_norm.py", __doc__ or "")
    torch.set_num_threads(options.threads)
    print(f"batch {options.batch_size}, {counted(options.threads, 'thread')}, load before {load()}")
    for name, ((channels, side), ways) in cases().items():
        x, grad = (torch.randn(options.batch_size, channels, side, side) for _ in range(2))
        layouts = [layout(way, function, x, grad) for way, function in ways.items()]
        samples: dict[str, list[Sample]] = {way: [] for way in ways}
        for number in range(-WARM_UP, options.rounds):
            for way, sample in alternate(layouts, number).items():
                if number >= 0:
                    samples[way].append(sample)
        print(name)
        for way, slow in samples.items():
            wall = median(sample.wall for sample in slow)
            times = ratio(slow, samples["operator"])  # speed of this over the operator's = the operator's time over its
            line = f"operator / {way}: {times}"
            line += f"; {verdict(times)}" if way == "formula" else ""
            print(f"  {way}: {1000 * wall:.0f} ms{'' if way == 'operator' else '; ' + line}")


if __name__ == "__main__":
    guarded(main)
