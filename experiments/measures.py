"""What trials are compared by."""

from trials import BLOCK, Outcome
from verdicts import Measure


def _last(outcome: Outcome) -> float:
    return 100 * outcome.last.test_accuracy


def _best(outcome: Outcome) -> float:
    return 100 * max(epoch.test_accuracy for epoch in outcome.epochs)


def _gap(outcome: Outcome) -> float:
    return 100 * (outcome.last.seen_accuracy - outcome.last.test_accuracy)


def _rise(outcome: Outcome) -> float:
    return outcome.last.test_loss - min(epoch.test_loss for epoch in outcome.epochs)


LAST = Measure("test accuracy", _last, "points", level="%")
BEST = Measure("best test accuracy", _best, "points", level="%")
GAP = Measure("training minus test accuracy", _gap, "points")
"""Both as in a test: no unit dropped, no image cropped by chance."""

RISE = Measure("test loss, last minus least", _rise, decimals=3)


def reached(accuracy: float) -> Measure:
    """Steps until the training accuracy of BLOCK steps is that high; all steps where it never is.

    So a ratio is at least what it is said to be where only the one above the line never gets there.
    """

    def arrives(outcome: Outcome) -> bool:
        return any(share >= accuracy for share in outcome.curve)

    def steps(outcome: Outcome) -> float:
        blocks = (i for i, share in enumerate(outcome.curve, 1) if share >= accuracy)
        return float(BLOCK * next(blocks, max(len(outcome.curve), 1)))

    name = f"steps to {100 * (1 - accuracy):g} % training error"
    return Measure(name, steps, ratio=True, arrives=arrives, at_least=True, diverged=True)


def epochs_to(accuracy: float) -> Measure:
    """Epochs until training images, as in a test, are told that well; one more than there were where they never are."""

    def arrives(outcome: Outcome) -> bool:
        return any(epoch.seen_accuracy >= accuracy for epoch in outcome.epochs)

    def epochs(outcome: Outcome) -> float:
        found = (i for i, epoch in enumerate(outcome.epochs, 1) if epoch.seen_accuracy >= accuracy)
        return float(next(found, len(outcome.epochs) + 1))

    name = f"epochs to {100 * (1 - accuracy):g} % error on training images"
    return Measure(name, epochs, ratio=True, arrives=arrives, diverged=True)


def _seconds(outcome: Outcome) -> float:
    return outcome.seconds / outcome.steps


SECONDS = Measure("seconds a step", _seconds, ratio=True)
