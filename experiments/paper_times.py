"""Claims of the paper about time, on paper: two GTX 580s against one with the half network, and 90 epochs in days.

    python experiments/paper_times.py [--machine gtx580-pcie2] [--batch-size 128]

The paper (section 3.2): the net on two GPUs takes slightly less time to train than the half net on one. (Abstract and
section 5): 90 epochs of 1.2 million images took five to six days on two GTX 580 3 GB. Both from the table and the
machine's figures (`splitnet.costs`), without overlap, as in 2012. What the kernels of 2012 reached of the GPU's peak
is not published for these shapes: it is an assumption of the machine's, so it is varied; what holds for all of them
holds, what holds for some depends on it.
Expected: the first claim at every share; the second at 0.29 to 0.35 of the peak, about half of what matrix products
reach on Fermi. Reading, cropping and testing are not in it, so the true share was higher if they cost anything.
"""

from dataclasses import dataclass, replace

from splitnet.costs import Prediction, Step, predicted
from splitnet.errors import UsageError
from splitnet.machines import HERE, MACHINES, Machine, machine
from splitnet.network.presets import preset
from splitnet.options import check_bounds, guarded, option, parse

IMAGES, EPOCHS, DAYS = 1.2e6, 90, (5.0, 6.0)
SHARES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
"""Of the peak; matrix products of Fermi reach 0.58 to 0.63 (machines.py)."""
SLIGHTLY = (0.85, 1.0)
"""Time on two over time of the half network on one that "slightly less" is taken to mean."""


@dataclass(frozen=True, kw_only=True)
class Options:
    machine: str = option("gtx580-pcie2", f"the GPUs: {', '.join(MACHINES)}, or a file")
    batch_size: int = option(128, "images in a step")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (1, 65536)})


def days(step: Prediction) -> float:
    return IMAGES * EPOCHS / step.images_per_second / 86400


def steps(found: Machine, batch: int) -> dict[str, Prediction]:
    return predicted(preset("alexnet", 2), Step(batch), found)


def share_for(found: Machine, batch: int, wanted: float) -> float:
    """The share of the peak at which 90 epochs take that many days, by bisection; 1 where no share is enough."""
    low, high = 0.01, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        enough = days(steps(replace(found, float32_share=middle), batch)["towers"]) <= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


def verdict(values: list[float], least: float, most: float) -> str:
    """Whether all of them, some or none lie between."""
    held = sum(least <= value <= most for value in values)
    return (
        "holds" if held == len(values) else "does not hold" if not held else f"holds at {held} of {len(values)} shares"
    )


def main() -> None:
    options = parse(Options, "experiments/paper_times.py", __doc__ or "")
    if options.machine == HERE:
        raise UsageError(f"--machine {HERE}: the claims are of GPUs; name a pair of them")
    found = machine(options.machine)
    print(f"{found.name}, batch {options.batch_size}, float32; the table assumes {found.float32_share} of the peak")
    print("share of peak   two GPUs   half on one   ratio   90 epochs   images/s")
    ratios, durations = [], []
    for share in SHARES:
        of = steps(replace(found, float32_share=share), options.batch_size)
        towers, half = of["towers"], of["half"]
        ratios.append(towers.seconds / half.seconds)
        durations.append(days(towers))
        print(
            f"{share:13.2f} {1000 * towers.seconds:7.0f} ms {1000 * half.seconds:10.0f} ms {ratios[-1]:7.3f}"
            f" {durations[-1]:6.1f} days {towers.images_per_second:8.0f}"
        )
    own = steps(found, options.batch_size)["towers"]
    print(f"exposed communication at {found.float32_share}: {own.exposed / own.seconds:.1%} of the step")
    work = preset("alexnet-half", 1).multiply_adds
    table = preset("alexnet", 2)
    first = sum(row.multiply_adds // row.holders for row in table.rows())
    print(f"products of tower 0 over the half network's: {first / work:.3f}")
    print(f"claim 1, slightly less time on two ({SLIGHTLY[0]} to {SLIGHTLY[1]}): {verdict(ratios, *SLIGHTLY)}")
    shares = [share_for(found, options.batch_size, wanted) for wanted in reversed(DAYS)]
    needed = f"it needs {shares[0]:.2f} to {shares[1]:.2f} of the peak"
    print(f"claim 2, {DAYS[0]:.0f} to {DAYS[1]:.0f} days: {verdict(durations, *DAYS)}; {needed}")


if __name__ == "__main__":
    guarded(main)
