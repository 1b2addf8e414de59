"""Two runs beside each other, figure by figure, and the gate: a condition on a figure that fails a build."""

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from splitnet.errors import UsageError
from splitnet.measure.manner import emulated_as, emulated_machine
from splitnet.measure.metrics import SHARES, Metric, figure
from splitnet.measure.summary import Summary


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure in two runs."""

    metric: str
    before: float
    after: float
    unit: str
    better: str
    relative: float | None
    """after / before - 1; None where before is 0 and after is not."""
    noise: bool | None
    """Whether the ranges of the measured steps overlap; None of a figure that was taken once."""
    comparable: bool = True
    """Not where it is of devices' clocks, and they are those of unlike machines."""

    @property
    def same(self) -> bool:
        return self.before == self.after

    @property
    def verdict(self) -> str:
        """In a word."""
        if not self.comparable:
            return "other clocks"
        if self.same:
            return "same"
        if self.noise:
            return "within noise"
        if not self.better or (self.noise is None and self.unit != "bytes"):  # taken once: nothing says how sure
            return "changed"
        return "better" if (self.after > self.before) == (self.better == "higher") else "worse"


def differences(before: Summary, after: Summary) -> list[Difference]:
    """The figures that both runs have, the largest relative difference first."""
    known, unlike_clocks = {metric.name: metric for metric in after.metrics}, _unlike_clocks(before, after)
    rows = [
        replace(_difference(metric, known[metric.name]), comparable=not (unlike_clocks and _on_clocks(metric)))
        for metric in before.metrics
        if metric.name in known
    ]
    return sorted(rows, key=lambda row: -inf if row.relative is None else -abs(row.relative))


def _difference(before: Metric, after: Metric) -> Difference:
    relative = 0.0 if before.value == after.value else after.value / before.value - 1 if before.value else None
    noise = None
    if None not in (before.least, before.greatest, after.least, after.greatest):
        noise = before.least <= after.greatest and after.least <= before.greatest  # type: ignore[operator]
    return Difference(before.name, before.value, after.value, before.unit, before.better, relative, noise)


def _unlike_clocks(before: Summary, after: Summary) -> tuple[str, str] | None:
    """Whose clocks the emulated devices of each have, where these are of two machines."""
    one, two = (emulated_as(run.run) or "this CPU" for run in (before, after))
    return (one, two) if before.emulated and after.emulated and one != two else None


def _on_clocks(metric: Metric) -> bool:
    """All times but those of the wall are of the devices' clocks, and what is made of them."""
    name = metric.name.partition(".")[0]
    made = {"device_speed_ratio", *(f"{part}_share" for part in SHARES)}
    return name in made or (metric.unit == "ms" and name != "step_ms")


def unpaired(before: Summary, after: Summary) -> tuple[list[str], list[str]]:
    """Names of figures that only the first, and only the second run has."""
    first, second = ([metric.name for metric in run.metrics] for run in (before, after))
    return [name for name in first if name not in second], [name for name in second if name not in first]


def circumstances(before: Summary, after: Summary) -> list[tuple[str, Any, Any]]:
    """What else differs: (option or fact, in the first run, in the second)."""
    one, two = (_options(run) | _facts(run) for run in (before, after))
    first, second = (emulated_machine(run.run) for run in (before, after))
    if first and second:  # of machines that both are given, what differs; else the name says all
        one, two = (told | _figures(found) for told, found in ((one, first), (two, second)))
    return [(name, one.get(name), two.get(name)) for name in one | two if one.get(name) != two.get(name)]


WORKLOAD = ("preset", "towers", "crosses", "devices", "data", "batch_size", "steps", "epochs", "optimizer", "threads")
"""Options that change what a step or a run is, rather than how well it is done."""


def unlike(before: Summary, after: Summary) -> str:
    """A warning where the runs did not do the same; "" where they did."""
    one, two = (run.run["options"] for run in (before, after))
    clocks, others = _unlike_clocks(before, after), ""
    if clocks:
        others = f"Devices' clocks are those of {clocks[0]} before and of {clocks[1]} after: their ms do not compare."
    names = [f"--{name.replace('_', '-')}" for name in WORKLOAD if one.get(name) != two.get(name)]
    told = f"Not like with like: {', '.join(names)} differ{'s' * (len(names) == 1)}." if names else ""
    return " ".join(filter(None, (told, others)))


def _options(run: Summary) -> dict[str, Any]:
    """By their names on the command line; where a run was written to changes nothing."""
    return {f"--{n.replace('_', '-')}": value for n, value in run.run["options"].items() if n != "out"}


def _facts(run: Summary) -> dict[str, Any]:
    packages, machine, emulated = run.run.get("packages"), run.run.get("machine"), emulated_machine(run.run)
    facts = {name: run.run.get(name) for name in ("commit", "python", "data", "threads", "load")}
    if emulated:
        facts["emulated machine"] = emulated.get("name")
    for held in (packages, None if machine is emulated else machine):
        facts |= held if isinstance(held, dict) else {}
    return facts | {"devices": ", ".join(entry["device"] for entry in run.run["devices"])}


def _figures(machine: dict[str, Any]) -> dict[str, Any]:
    """By name, as those of the machine that is emulated; where they are from is no figure."""
    known = {name: held for name, held in machine.items() if isinstance(held, int | float)}
    return {f"emulated {name.replace('_', ' ')}": held for name, held in known.items()}


# The gate

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

UNITS = {
    "images/s": {"/s": 1.0, "images/s": 1.0},
    "ms": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "bytes": {"B": 1.0, "bytes": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "%": {"%": 1.0},
    "": {},
}
"""What a figure may be compared in: unit -> word -> factor."""

EXPRESSION = re.compile(
    r"\s*([^\s<>=]+)\s*(<=|>=|<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z/%]*)\s*"
)


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition under which `report` fails: a figure, or with no unit its ratio, beside a number."""

    text: str
    metric: str
    operator: str
    number: float
    unit: str

    def failure(self, before: Summary | None, after: Summary) -> str | None:
        """One line with the value if the condition holds. UsageError if there is no such figure.

        With a unit, the figure of `after` itself. Without: its ratio to that of `before`, or, of one run, to that of
        its base layout; a figure that has neither unit nor base, such as the loss, is itself compared.
        """
        metric = _found(after, self.metric, self.text)
        itself = before is None and metric.base is None and not metric.unit
        if self.unit or itself:
            value, told = metric.value / self._factor(metric), f"{metric.name} is {figure(metric.value, metric.unit)}"
        else:
            value, told = self._ratio(metric, before, after)
        return f"{self.text.strip()}: {told}" if OPERATORS[self.operator](value, self.number) else None

    def _factor(self, metric: Metric) -> float:
        units = UNITS[metric.unit]
        if self.unit and self.unit not in units:
            wanted = f"in {', '.join(units)}" if units else "without a unit"
            raise self._wrong(f"{metric.name} is given {wanted}")
        return units[self.unit] if self.unit else 1.0

    def _ratio(self, metric: Metric, before: Summary | None, after: Summary) -> tuple[float, str]:
        if before is None:
            other, base, value = "the base layout", metric.base, metric.ratio
        else:
            other, base = before.name, _found(before, metric.name, self.text).value
            if _on_clocks(metric) and (clocks := _unlike_clocks(before, after)):
                raise self._wrong(f"{metric.name} is on the clocks of {clocks[0]} before and of {clocks[1]} after")
            value = metric.value / base if base else None
        if base is None:
            units = ", ".join(UNITS[metric.unit])
            hint = f", or give a unit ({units}) to compare it itself" if units else ""
            raise self._wrong(f"there is no {metric.name} of another layout; name a second run{hint}")
        if value is None:
            raise self._wrong(f"{metric.name} of {other} is 0, which gives no ratio")
        both = f"{figure(metric.value, metric.unit)} and {figure(base, metric.unit)}"
        paired = ", round by round" if before is None and value != metric.value / base else ""
        return value, f"{metric.name} is {value:.4g} times that of {other}{paired} ({both})"

    def _wrong(self, why: str) -> UsageError:
        return UsageError(f'--fail-if "{self.text}": {why}')


def gate(text: str) -> Gate:
    """Read `NAME OP NUMBER[UNIT]`. UsageError if it is not one."""
    match = EXPRESSION.fullmatch(text)
    if match is None:
        raise UsageError(f'--fail-if "{text}": NAME OP NUMBER[UNIT] is wanted, as in "images_per_second < 0.95"')
    name, sign, number, unit = match.groups()
    if not isfinite(float(number)):
        raise UsageError(f'--fail-if "{text}": {number} is too large')
    words = [word for units in UNITS.values() for word in units]
    if unit and unit not in words:
        raise UsageError(f'--fail-if "{text}": no unit {unit}; there are {", ".join(words)}')
    return Gate(text, name, sign, float(number), unit)


def _found(run: Summary, name: str, text: str) -> Metric:
    metric = run.metric(name)
    if metric is None:
        raise UsageError(f'--fail-if "{text}": {run.name} has no {name}; {_offer([m.name for m in run.metrics], name)}')
    return metric


def _offer(names: Sequence[str], wanted: str, most: int = 12) -> str:
    """Names to choose from: those that begin alike first, and not all of them."""
    if not names:
        return "it has no figures at all"
    ordered = sorted(names, key=lambda name: (not name.startswith(wanted.partition(".")[0]), "." in name))
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"it has {', '.join(ordered[:most])}{rest}"
