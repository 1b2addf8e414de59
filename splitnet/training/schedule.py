"""Learning rates over epochs: divided by ten at given ones, or when the test error stands still.

Sources: "2012" is layer-params-145.cfg of github.com/computerhistory/AlexNet-Source-Code (2f8b81f), whose comments
note each change that was made by hand; "paper" is Krizhevsky, Sutskever and Hinton, NIPS 2012, section 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from splitnet.training.optimizer import Kind, Update

DROP = 10
"""What a rate is divided by."""

MOST_DROPS = 3
"""On a plateau; the paper's rates were lowered three times."""

PATIENCE = 3
"""Epochs without a lower test error that make a plateau. Ours: the paper says "when the validation error rate stopped
improving", by hand."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rates in each epoch, as a function of the epoch and of the test errors so far: nothing to remember.

    Epochs are counted from 0: `drops=(25,)` leaves 25 epochs at the first rate.
    """

    drops: tuple[int, ...] | Literal["plateau"] = ()
    """Of the weights, and of the biases unless they have their own."""
    bias_drops: tuple[int, ...] | None = None
    first_drop: int | None = None
    """One more for the first row's weight."""
    first_freeze: int | None = None
    """From then on it is not updated."""

    @property
    def by_kind(self) -> bool:
        return self.bias_drops is not None or self.first_drop is not None or self.first_freeze is not None

    def rates(self, update: Update, epoch: int, errors: Sequence[float] = ()) -> dict[Kind, float]:
        """In this epoch; `errors`: test errors after each epoch before, in order (for a plateau)."""
        drops = plateaus(errors) if self.drops == "plateau" else _passed(self.drops, epoch)
        bias_drops = drops if self.bias_drops is None else _passed(self.bias_drops, epoch)
        first = drops + (self.first_drop is not None and epoch >= self.first_drop)
        frozen = self.first_freeze is not None and epoch >= self.first_freeze
        return {
            "first weight": 0.0 if frozen else update.rate_of("first weight") / DROP**first,
            "weights": update.rate_of("weights") / DROP**drops,
            "biases": update.rate_of("biases") / DROP**bias_drops,
        }


def _passed(drops: Sequence[int] | str, epoch: int) -> int:
    return sum(epoch >= int(drop) for drop in drops)


def plateaus(errors: Sequence[float]) -> int:
    """How often, at most MOST_DROPS times, the error did not fall below its least for PATIENCE epochs."""
    least, waited, found = float("inf"), 0, 0
    for error in errors:
        if error < least:
            least, waited = error, 0
            continue
        waited += 1
        if waited == PATIENCE:
            found, waited = found + 1, 0
    return min(found, MOST_DROPS)
