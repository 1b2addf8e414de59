"""Claims about trainings, and what trials say of them: paired differences over seeds, and an interval of their mean.

A claim is about two variants, trained from the same seeds on the same images in the same order: that a measure of one
lies above that of the other, by more than a bound. It is `shown` if the 99 % interval of the mean difference
(Student's) lies above the bound, `the opposite` if it lies below, and `not shown` otherwise: with one seed too, where
no network learnt anything, where one never got to what is measured or diverged before it, and where all values are
alike, for then the measure is too coarse for an interval. The interval is over seeds; the test images are the same for
all, so it says nothing of other images, and nothing of what several claims together come to. Nor does it hold for who
adds seeds until something is shown: how many there are is to be settled before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from splitnet.measure.meter import STUDENT_99

Verdict = Literal["shown", "the opposite", "not shown"]


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of n values, and its 99 % interval; None of fewer than two values."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """More than 31 values are given the slightly wider interval of 31."""
        mean, n = fmean(values), len(values)
        if n < 2:
            return cls(mean, None, None, n)
        half = STUDENT_99[min(n - 1, len(STUDENT_99)) - 1] * stdev(values) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)

    def exp(self) -> "Interval":
        """Of logarithms back to ratios: the mean becomes a geometric one."""
        low, high = (None if value is None else math.exp(value) for value in (self.low, self.high))
        return Interval(math.exp(self.mean), low, high, self.n)

    def judged(self, bound: float) -> Verdict:
        """Whether it lies above the bound."""
        if self.low is None or self.high is None or self.low == self.high:
            return "not shown"
        return "shown" if self.low > bound else "the opposite" if self.high < bound else "not shown"


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a trial's outcome, and how a difference, or a ratio, of it is written."""

    name: str
    of: Callable[[Any], float]
    unit: str = ""
    decimals: int = 2
    ratio: bool = False
    """Whether two are compared by their ratio, and not by their difference."""
    level: str = ""
    """The unit of the figure itself, where that of a difference is another."""
    arrives: Callable[[Any], bool] | None = None
    """Whether an outcome got to where the figure is of; None: each does."""
    at_least: bool = False
    """Whether the figure of one that did not is the least that it can be, so that a ratio to it is one, too.

    What is shown of figures that are cut off there holds for the whole ones, whose mean is no smaller.
    """
    diverged: bool = False
    """Whether a training that diverged has the figure, too: what it reached before, or the accuracy of a guess."""

    def late(self, outcome: Any) -> bool:
        """Whether it did not get there."""
        return self.arrives is not None and not self.arrives(outcome)

    def has(self, outcome: Any) -> bool:
        """Whether the figure is there."""
        if outcome.diverged and not self.diverged:
            return False
        try:
            self.of(outcome)
        except (KeyError, ZeroDivisionError):  # nothing was looked for, or there was no step
            return False
        return True

    def difference(self, one: Any, other: Any = None) -> float:
        """Of two outcomes; of a ratio its logarithm. Without another one the figure itself."""
        a = self.of(one)
        b = float(self.ratio) if other is None else self.of(other)
        return math.log(a / b) if self.ratio else a - b

    def written(self, value: float, sign: bool = True) -> str:
        """A difference or a ratio."""
        return f"{value:.3g}" if self.ratio else f"{value:{'+' * sign}.{self.decimals}f}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That a measure is greater with `more` than with `less`, or greater than a bound where there is no `less`."""

    text: str
    source: str
    published: str
    """The figure beside which ours stands; "" where there is none."""
    measure: Measure
    more: str
    less: str = ""
    """Names of variants."""
    above: float | None = None
    """What the difference must exceed; None: 0, and 1 for a ratio."""
    comparable: str
    """What of the published figure can be compared, and what cannot."""

    @property
    def unit(self) -> str:
        """Of what is judged: a difference, or a level."""
        return self.measure.unit if self.less else self.measure.level or self.measure.unit

    @property
    def bound(self) -> float:
        return (1.0 if self.measure.ratio else 0.0) if self.above is None else self.above

    def judge(self, trials: Mapping[str, Mapping[int, Any]]) -> "Judgement | None":
        """By the seeds that each of its variants was trained from: variant -> seed -> outcome. None if there is none.

        Where a training diverged, so that what is measured is not there, the others are told of and nothing is shown.
        """
        kinds = [trials.get(name, {}) for name in (self.more, self.less) if name]
        shared = sorted(set.intersection(*(set(kind) for kind in kinds)))
        seeds = [seed for seed in shared if all(self.measure.has(kind[seed]) for kind in kinds)]
        if not shared:
            return None
        lost = len(shared) - len(seeds)
        learnt = any(kind[seed].learnt for kind in kinds for seed in shared)
        late = [sum(self.measure.late(kind[seed]) for seed in seeds) for kind in kinds]
        counts = {f"not reached by {sum(late)} of {len(kinds) * len(seeds)}": sum(late)}
        diverged = sum(any(kind[seed].diverged for kind in kinds) for seed in shared if seed not in seeds)
        counts |= {
            f"diverged from {diverged} of {len(shared)} seeds": diverged,
            f"not looked for in those of {lost - diverged} of {len(shared)} seeds": lost - diverged,
        }
        missing = "; ".join(text for text, count in counts.items() if count)
        if not seeds or any(late if not self.measure.at_least else late[1:]):
            return Judgement(self, None, (), "not shown", learnt, missing)
        differences = [self.measure.difference(*(kind[seed] for kind in kinds)) for seed in seeds]
        interval = Interval.of(differences)
        if self.measure.ratio:
            interval, differences = interval.exp(), [math.exp(value) for value in differences]
        verdict = interval.judged(self.bound) if learnt and not lost else "not shown"
        if any(late) and verdict == "the opposite":  # what is only known to be at least so great may be greater
            verdict = "not shown"
        return Judgement(self, interval, tuple(differences), verdict, learnt, missing, any(late))


@dataclass(frozen=True, slots=True)
class Judgement:
    """What trials say of a claim."""

    claim: Claim
    interval: Interval | None
    """None where too many did not get there."""
    values: tuple[float, ...]
    """Seed by seed; none without an interval."""
    verdict: Verdict
    learnt: bool = True
    """Whether any of the networks did more than guess; where none did, nothing is shown."""
    missing: str = ""
    """How many trainings did not get to what is measured, or diverged."""
    least: bool = False
    """Whether the figure is the least that it can be."""

    @property
    def figure(self) -> str:
        """`+1.20 points (99 % -0.10 to +2.50, n 4)`, or `not reached by 3 of 8`."""
        if self.interval is None:
            return self.missing
        unit, within = self.claim.unit, "no interval, "
        if self.interval.low is not None and self.interval.high is not None:
            low, high = map(self._written, (self.interval.low, self.interval.high))
            within = f"99 % above {low}, " if self.least else f"99 % {low} to {high}, "
        figure = f"{self._written(self.interval.mean)}{' ' * bool(unit)}{unit} ({within}n {self.interval.n})"
        return f"{'at least ' * self.least}{figure}{'; ' * bool(self.missing)}{self.missing}"

    def _written(self, value: float) -> str:
        return self.claim.measure.written(value, sign=bool(self.claim.less))

    @property
    def what(self) -> str:
        """What the figure is of."""
        other = f" {'/' if self.claim.measure.ratio else '-'} {self.claim.less}" if self.claim.less else ""
        return f"{self.claim.measure.name}, {self.claim.more}{other}"

    @property
    def line(self) -> str:
        """What is printed of it."""
        wanted = f", above {self._written(self.claim.bound)} wanted" if self.claim.above else ""
        published = f"; published: {self.claim.published}" if self.claim.published else ""
        guessed = "" if self.learnt else "; the networks only guess"
        return f"{self.verdict}: {self.claim.text}: {self.what}: {self.figure}{wanted}{guessed}{published}"

    def record(self) -> dict[str, Any]:
        """As the results' file has it, and `summary` and the page read it."""
        claim = self.claim
        return {
            "claim": claim.text,
            "source": claim.source,
            "published": claim.published,
            "what": self.what,
            "figure": self.figure + ("" if self.learnt else "; the networks only guess"),
            "mean": self.interval and self.interval.mean,
            "low": self.interval and self.interval.low,
            "high": None if self.least else self.interval and self.interval.high,
            "n": len(self.values),
            "values": list(self.values),
            "unit": claim.unit,
            "ratio": claim.measure.ratio,
            "level": not claim.less,
            "bound": claim.bound,
            "verdict": self.verdict,
            "comparable": claim.comparable,
        }
