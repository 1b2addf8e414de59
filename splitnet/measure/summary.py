"""A run in short: its files read, its figures by name, and one sentence on what came out."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from splitnet.errors import UsageError
from splitnet.measure import metrics, timeline
from splitnet.measure.manner import computed, crossed, emulated_as
from splitnet.measure.metrics import Metric, settled
from splitnet.measure.records import NewerSchemaError, read_compare, read_learned, read_records, read_run
from splitnet.measure.timeline import Timeline

T = TypeVar("T")


@dataclass
class Summary:
    """What pages and comparisons are made from. Nothing here was computed anew: the files say it all."""

    name: str
    run: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    tests: list[dict[str, Any]] = field(default_factory=list)
    comparison: dict[str, Any] | None = None
    timeline: Timeline | None = None
    learned: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)
    """A line for each file that is not there or not whole."""
    verdict: str = ""
    metrics: list[Metric] = field(default_factory=list)

    @property
    def emulated(self) -> bool:
        """Whether the run's devices are fake."""
        return any(entry["device"].startswith("fake") for entry in self.run["devices"])

    @property
    def layouts(self) -> list[dict[str, Any]]:
        """Those compared, the run's own first; whether they fit or not."""
        return self.comparison["layouts"] if self.comparison else []

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The layouts that fit."""
        return [layout for layout in self.layouts if fits(layout)]

    @property
    def own(self) -> dict[str, Any] | None:
        """The run's own layout in the comparison; None if nothing was compared."""
        return self.comparison["layouts"][0] if self.comparison else None

    @property
    def base(self) -> dict[str, Any] | None:
        """The layout that it is compared with, or that it would be if that fitted; None if there is no other."""
        if self.comparison is None:
            return None
        others = {layout["layout"]: layout for layout in self.comparison["layouts"][1:]}
        return others.get(self.comparison["base"], others.get("whole"))

    @property
    def replicas(self) -> dict[str, Any] | None:
        """The same function in data parallel, beside the run's own layout; None if it was not measured."""
        others = (layout for layout in self.measured if layout is not self.own)
        return next((layout for layout in others if layout["layout"] == "replicas"), None)

    @property
    def command(self) -> str:
        """The run's command line, for a shell; "" if none was kept."""
        words = self.run.get("command")
        if not isinstance(words, list):
            return ""
        return shlex.join(map(str, words))

    @property
    def shared(self) -> bool:
        """Whether towers that exchange share a device: what they hand each other there is no copy in a trace."""
        return bool(self.run.get("bytes_exchanged_a_step")) and len(self.run["devices"]) < self.run["options"]["towers"]

    @property
    def crossings(self) -> list[dict[str, Any]]:
        """What the run's own layout exchanges in front of rows: bytes of a step, measured and derived."""
        entries = self.own.get("exchanged", []) if self.own else []
        return [entry for entry in entries if entry["row"] != GRADIENTS]

    def gradients(self) -> list[tuple[str, dict[str, Any]]]:
        """What replicas exchange, of the run's own layout and of the whole network: who, and the bytes of a step."""
        layouts = (self.own, self.replicas)
        return [
            (heading(layout), entry)
            for layout in {id(one): one for one in layouts if one is not None}.values()
            for entry in layout.get("exchanged", ())
            if entry["row"] == GRADIENTS
        ]

    def traced(self) -> dict[str, int] | None:
        """Bytes that the trace's drawn step has in front of each row; None without a trace of all that crosses."""
        step = self.timeline.median_step() if self.timeline is not None else ""
        devices = {entry["device"] for entry in self.run["devices"]}
        if self.timeline is None or not step or self.shared or not devices <= set(self.timeline.devices):
            return None
        found: dict[str, int] = {}
        for (row, *_), size in self.timeline.exchanged(step).items():
            if row:  # the others are what ranks tell each other beside activations
                found[row] = found.get(row, 0) + size
        return found

    def metric(self, name: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.name == name), None)


def fits(layout: dict[str, Any]) -> bool:
    return "does_not_fit" not in layout


def other_load(comparison: dict[str, Any]) -> str:
    """A sentence on what else the machine did while layouts were compared; "" if nothing, or nobody knows."""
    busy = comparison.get("other_load") or 0
    return f"Other processes kept {busy:.1f} cores busy meanwhile." if busy >= 0.1 else ""


def timed(steps: Sequence[dict[str, Any]]) -> str:
    """What the speed while training is taken from; see `metrics.from_records`."""
    if len(steps) < 2:
        return "of one step"
    count = len(settled(steps))
    left = "the first" if len(steps) - count == 1 else f"{len(steps) - count:,} that warm up"
    return f"median of {count:,} step{'s' * (count != 1)}, {left} left out"


def waiting(steps: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    """Part of the time of `settled` steps in which images were waited for; none where nothing tells."""
    known = [step for step in settled(steps) if step.get("waited") is not None and step["seconds"] > 0]
    if known:
        share = 100 * sum(step["waited"] for step in known) / sum(step["seconds"] for step in known)
        yield Metric("waiting_share", share, "%", "lower", "part of the steps' time that waits for images")


def summarise(folder: Path) -> Summary:
    """Read a run folder and leave it as it is.

    UsageError if it is no run folder, or if a file is of a newer schema. Any other file that is not there or not
    whole is left out and named in `missing`.
    """
    found = Summary(folder.resolve().name, read_run(folder))
    records, cut = _part(found, lambda: read_records(folder / "steps.jsonl")) or ([], None)
    found.missing += [] if cut is None else [cut]
    found.steps = [record for record in records if record["kind"] == "step"]
    found.tests = [record for record in records if record["kind"] == "test"]
    if _wanted(found, folder / "compare.json", "compare"):
        found.comparison = _part(found, lambda: read_compare(folder))
    if _wanted(found, folder / "trace.json.gz", "profile"):
        found.timeline = _part(found, lambda: Timeline(timeline.read(folder / "trace.json.gz")))
        if found.timeline is not None and not found.timeline.steps:
            found.missing.append(f"{folder / 'trace.json.gz'}: it holds no step")
    if (folder / "learned.json").exists():
        found.learned = _part(found, lambda: read_learned(folder))
    if not found.steps and found.run.get("steps"):
        found.missing.append(f"{folder / 'steps.jsonl'}: of {found.run['steps']} steps it holds none")
    found.metrics = metrics.finite(_figures(found))
    found.verdict = verdict(found)
    return found


def _wanted(found: Summary, path: Path, option: str) -> bool:
    """Whether the run was to make a file; if it was not, that is said."""
    options = found.run["options"]
    if path.exists() or (options.get(option, True) and options.get("steps") != 0):
        return True
    why = "--steps 0 only tests" if options.get("steps") == 0 else f"--no-{option}"
    found.missing.append(f"{path}: not made ({why})")
    return False


def _part(found: Summary, read: Callable[[], T]) -> T | None:
    """What `read` returns; None, and a line in `missing`, if its file is not there or not whole."""
    try:
        return read()
    except NewerSchemaError:
        raise
    except UsageError as error:
        found.missing.append(str(error))
        return None


def _figures(found: Summary) -> Iterator[Metric]:
    own, base = found.own, found.base
    if own is not None and "does_not_fit" not in own:
        yield from metrics.from_comparison(own, None if base is None or "does_not_fit" in base else base)
    if found.replicas is not None:
        yield from metrics.from_replicas(found.replicas)
    yield from metrics.from_records(found.steps, found.tests)
    yield from waiting(found.steps)
    if found.timeline is not None:
        yield from metrics.from_timeline(found.timeline)


GRADIENTS = "gradients"
"""What stands in a row's place where replicas sum theirs."""

HEADINGS = {
    "towers": "{towers} towers",
    "waiting": "no overlap",
    "whole": "same, whole",
    "replicas": "{replicas} replicas",
}

REPLICAS = (
    "Replicas are data parallelism: each holds the whole network, takes its share of the images, and gets the sum of"
    " all gradients when backward is over."
)
RANKS = (
    "Replicas are data parallelism (DistributedDataParallel): each process holds the whole network, takes its share of"
    " the images, and gets the sum of all gradients. What is on one device runs in the first process alone, with its"
    " threads, while the others wait."
)


def on_layouts(comparison: dict[str, Any]) -> str:
    """What has to be known of the layouts beside towers; "" where there are none such."""
    own = [layout for layout in comparison["layouts"] if layout["layout"] == "replicas" and fits(layout)]
    return "" if not own else RANKS if _are_ranks(own[0].get("devices") or ()) else REPLICAS


def _are_ranks(devices: Sequence[str]) -> bool:
    return bool(devices) and list(devices) == [f"rank {number}" for number in range(len(devices))]


def named(devices: Sequence[str]) -> list[str]:
    """Devices, each once; several processes in one word."""
    found = list(dict.fromkeys(devices))
    return [f"ranks 0-{len(found) - 1}"] if len(found) > 1 and _are_ranks(found) else found


def heading(layout: dict[str, Any], device: str = "") -> str:
    """A layout's name in tables and pictures; with one of its devices, or all."""
    counts = {what: layout.get(what, "") for what in ("towers", "replicas")}
    name = HEADINGS.get(layout["layout"], layout["layout"]).format(**counts)
    name += ", overlap" if layout.get("overlap") else ""
    where = device or ", ".join(named(layout.get("devices") or ()))
    return f"{name}, {where}" if where else name


# The verdict: clauses of one sentence, each left out where there is nothing to say.

NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


def verdict(found: Summary) -> str:
    """One sentence: how fast, how much memory, what the exchanges cost, and whether the run came to its end."""
    own = found.own
    if own is not None and "does_not_fit" in own:
        clauses = [f"do{'es' * _single(found)} not fit: {own['does_not_fit'].rstrip('.')}"]
    else:
        clauses = [" and ".join(filter(None, (_speed(found), _memory(found)))), _exposed(found), _replicas(found)]
    return f"{_who(found)} {'; '.join(filter(None, (*clauses, _end(found))))}."


def _who(found: Summary) -> str:
    own = found.own or {}
    towers = own.get("towers") or found.run["options"]["towers"]
    devices = named(own.get("devices") or [entry["device"] for entry in found.run["devices"]])
    many = NUMBERS[towers] if 0 <= towers < len(NUMBERS) else f"{towers:,}"
    where = f"{', '.join(devices[:-1])} and {devices[-1]}" if len(devices) > 1 else "".join(devices)
    whole = " in one piece" if own.get("layout") == "whole" else ""
    alone = found.metric("speed_ratio") is None or found.base is None
    told = [_emulated(found)] * found.emulated + (computed(found.run["options"]) if alone else [])
    told += crossed(found.run["options"])
    brackets = f" ({', '.join(told)})" if told else ""
    return f"{many} tower{'s' * (towers != 1)}{whole} on {where}{brackets}"


def _emulated(found: Summary) -> str:
    """As which GPU."""
    name = emulated_as(found.run)
    return f"emulated as {name}" if name else "emulated"


def _single(found: Summary) -> bool:
    return found.run["options"]["towers"] == 1


def _speed(found: Summary) -> str:
    """Beside the base layout if there is one, else in images/s."""
    base, s = found.base, "s" * _single(found)
    alone = found.metric("images_per_second") or found.metric("training_images_per_second")
    if base is not None and found.metric("speed_ratio") is not None:
        return f"train{s} {_ratio(found)}"
    if alone is not None:
        count = f", {timed(found.steps)}" if found.own is None else ""
        text = f"train{s} {alone.value:,.1f} images/s{count}"
        why = base.get("does_not_fit") if base else None
        return text + (f" where the same network on one device does not fit ({why})" if why else "")
    accuracy = found.metric("accuracy")
    if accuracy is not None:
        return f"classif{'ies' if s else 'y'} {accuracy.value:.1f} % of {found.tests[-1]['images']:,} test images right"
    return f"made{' not one whole step' if not found.steps else ' steps without a measurable time'}"


def _ratio(found: Summary) -> str:
    """On the clocks of the machine that is emulated first, if one is; else in this CPU's time."""
    assert found.own is not None
    ratio, own_clocks = found.own["ratio"], found.metric("device_speed_ratio")
    low, high = metrics.interval(ratio)
    kind = "range" if ratio.get("low") is None else "99 % interval"
    median, taken = ratio["median"], f"{kind} {low:.2f}-{high:.2f}, n {ratio['n']}"
    if found.emulated:
        here, taken = f"{median:.2f} times, {taken}", f"in this CPU's time, {taken}"
        name = emulated_as(found.run)
        if own_clocks is not None and name:
            median, low, high = own_clocks.value, own_clocks.least or 0.0, own_clocks.greatest or 0.0
            taken = f"on the clocks of {name}, range {low:.2f}-{high:.2f}; in this CPU's time {here}"
        elif own_clocks is not None:
            taken += f"; on the devices' clocks {own_clocks.value:.2f} times"
    both = computed(found.run["options"])
    taken = f"both {'in ' * (both[0] != 'compiled')}{', '.join(both)}; {taken}" if both else taken
    if low <= 1 <= high:
        nothing = "no measurably faster or slower than the same network on one device"
        return f"{nothing} ({median:.2f} times{',' * (not found.emulated)} {taken})"
    return f"{median:.2f} times as fast as the same network on one device ({taken})"


def _memory(found: Summary) -> str:
    peak = found.metric("peak_bytes")
    if peak is None:
        return ""
    several = len(found.own["memory"]) > 1 if found.own else False
    where = " on the fuller device" if several else ""
    if not peak.base:
        return f"need{'s' * _single(found)} {peak.value / 2**20:,.0f} MiB{where}"
    return f"need{'s' * _single(found)} {100 * peak.value / peak.base:.0f} % of its memory{where}"


def _exposed(found: Summary) -> str:
    """What exchanges cost where nothing hides them: the part of the device that waits most."""
    shares = [m.value for m in found.metrics if m.name.startswith("exposed_share.")]
    if not shares or found.traced() is None or not (found.own or {"exchanged": True})["exchanged"]:
        return ""
    return f"exchanges take {max(shares):.1f} % of a step"


def _replicas(found: Summary) -> str:
    """What the same function in data parallel exchanges, beside the run's own layout."""
    other, own = found.replicas, found.own
    if other is None or own is None or not fits(own):
        return ""
    ours, theirs = (sum(entry["measured"] for entry in layout["exchanged"]) for layout in (own, other))
    many = NUMBERS[n].lower() if 0 <= (n := other.get("replicas", 0)) < len(NUMBERS) else f"{n:,}"
    return f"they exchange {_megabytes(ours)} a step, {many} replicas of the whole network {_megabytes(theirs)}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,.0f} bytes"


def _end(found: Summary) -> str:
    status = str(found.run["status"]).partition("\n")[0].rstrip(".")
    told = {
        "finished": "",
        "running": "the run did not end, or still goes on",
        "interrupted": "the run was interrupted",
    }
    return told.get(status, f"the run {status}")
