"""Claim: a network with ReLUs reaches a given training error several times sooner than the same with tanh or sigmoids.

    python experiments/activations.py [--seeds 4] [--epochs 5] [--images 12800] [--full --devices cuda:0,cuda:1]

Source: the paper, section 3.1 and figure 1: a four-layer convolutional network with ReLUs reaches 25 % training error
on CIFAR-10 six times faster than with tanh, rates chosen for each by itself, without regularisation; the textbook, 5.6,
prefers ReLU to LeNet's sigmoids. Two towers of the textbook's network without dropout, to 25 and to 15 % training
error, each activation at the rate (Adam) that gets it there in the fewest steps from a seed which is not judged, and
else to the lowest loss. Training error is that of 10 steps; a network that never gets there counts with all its steps,
so that a ratio is at least what is printed; where ReLU never gets there, nothing is shown. A rate that is the least or
the greatest of those that are tried is told: a better one may lie beyond it.
Expected: above 1 for sigmoids, which learn nothing here for long. With tanh the opposite, perhaps: in a first look at
120 steps from one seed it was the faster one, with PyTorch's initial weights, under which ReLUs begin faintly. Six is
CIFAR-10's and a network's that is published nowhere.
"""

from collections.abc import Mapping, Sequence

from conduct import Experiment, begin, conclude, open_results, prepare, run_trials
from measures import reached
from results_file import TUNING, ResultsFile
from setting import Options, Setting, Size, about
from trials import Outcome, Variant, recipe
from verdicts import Claim

from splitnet.network.architecture import Op
from splitnet.options import guarded, parse

SMALL = Size(epochs=5, images=12800, test_images=5000)
FULL = Size(scale="1", side=None, epochs=5, seeds=5)

OTHERS: tuple[Op, ...] = ("tanh", "sigmoid")
RATES = (0.0003, 0.001, 0.003, 0.01)
ERRORS = (0.25, 0.15)
COMPARABLE = "That it is above 1; not six: another network (eight rows, not four), other images, Adam."


def variants(setting: Setting) -> list[Variant]:
    """Every activation at every rate."""
    plain = setting.table("fashion").without("dropout")
    return [
        Variant(name=f"{op}, rate {rate:g}", table=plain.replacing("relu", op), recipe=recipe("textbook", lr=rate))
        for op in ("relu", *OTHERS)
        for rate in RATES
    ]


Best = Mapping[tuple[str, float], Variant]
"""Of an activation and an error the variant with the rate that was chosen."""


def chosen(every: Sequence[Variant], file: ResultsFile) -> Best:
    """By the seed for choosing."""
    outcomes = file.outcomes()
    best: dict[tuple[str, float], Variant] = {}
    for op in ("relu", *OTHERS):
        tuned = [v for v in every if v.name.startswith(f"{op},")]
        for error in ERRORS:
            best[op, error] = min(tuned, key=lambda v, error=error: worth(outcomes[v.name][TUNING], error))  # type: ignore[misc]
    return best


def worth(found: Outcome, error: float) -> tuple[bool, bool, float, float]:
    """Less is better: one that got there, one that did not diverge, the sooner, the smaller loss."""
    steps = reached(1 - error)
    return steps.late(found), bool(found.diverged), steps.of(found), found.last.loss


def claims(best: Best) -> list[Claim]:
    return [
        Claim(
            text=f"ReLU reaches {100 * error:g} % training error sooner than {op}",
            source="paper, 3.1",
            published="6" if (op, error) == ("tanh", 0.25) else "",
            measure=reached(1 - error),
            more=best[op, error].name,
            less=best["relu", error].name,
            comparable=COMPARABLE,
        )
        for op in OTHERS
        for error in ERRORS
    ]


def at_an_edge(best: Best) -> str:
    """Which choices a better rate may lie beyond."""
    edges = [
        f"{v.name} (to {100 * error:g} %)" for (_, error), v in best.items() if v.recipe.lr in (RATES[0], RATES[-1])
    ]
    return f"At the edge of the rates that were tried: {', '.join(edges)}." if edges else ""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/activations.py", about(__doc__, SMALL, FULL), argv)
    prepare(options.threads)
    setting = Setting.of(options, options.size(SMALL, FULL))
    every = variants(setting)
    tuning = Experiment(name="activations", text=__doc__ or "", variants=every, claims=())
    with open_results("activations", options) as file:
        begin(file, tuning, setting)
        run_trials(file, tuning, setting, [TUNING])
        best = chosen(every, file)
        variants_ = list({variant.name: variant for variant in best.values()}.values())
        found, says = claims(best), at_an_edge(best)
        judged = Experiment(name="activations", text=__doc__ or "", variants=variants_, claims=found, says=says)
        run_trials(file, judged, setting, range(setting.size.seeds))
        conclude(file, judged, setting)


if __name__ == "__main__":
    guarded(main)
