"""A clock for each fake device, in seconds: emulated time, as if every device ran on its own.

An operation moves its device's clock by the time that it took here, divided by the device's speed. A copy
starts when both of its devices have done what was asked of them before, its data is there and the link is
free in that direction; it takes the link's latency and bytes over bandwidth. Both directions of a link run
at once, and each device's next operation waits for all copies to and from it.

Every device has links to every other one and to the host, all alike. The host itself takes no time, but it
waits: nothing starts on any device before a copy to the host that was asked for earlier is done.

Each clock also adds up what its time was spent on (`Spent`): work, copies, or nothing.
"""

from dataclasses import dataclass, replace

from splitnet.parallel.fake.devices import HOST, Place

Interval = tuple[float, float]
"""Start and end in seconds."""


@dataclass(slots=True)
class Link:
    """What every link is like. The defaults are a PCIe 3 x16 slot as programs see it."""

    bytes_per_second: float = 12e9
    latency: float = 10e-6  # seconds


@dataclass(slots=True)
class Spent:
    """What one device's seconds went to; together they are its clock at its last operation or alignment."""

    busy: float = 0.0
    exposed: float = 0.0  # copies between devices, with nothing computed beside them
    input: float = 0.0  # copies from and to the host, with neither beside them
    idle: float = 0.0


link = Link()
speed: list[float] = []
_computed: list[float] = []  # when the operations so far are done
_copied: list[float] = []  # when the copies so far are done
_busy: dict[tuple[Place, Place], float] = {}  # (source, target): when that direction of the link is free
_host = 0.0  # when the copies to the host so far are done
_spent: list[Spent] = []
_since: list[tuple[list[Interval], list[Interval]]] = []  # copies since the last operation: devices', the host's


def grow(devices: int) -> None:
    """Start clocks at 0 for devices up to `devices`."""
    for _ in range(len(speed), devices):
        speed.append(1.0)
        _computed.append(0.0)
        _copied.append(0.0)
        _spent.append(Spent())
        _since.append(([], []))


def now(index: int) -> float:
    """When device `index` has done everything asked of it."""
    return max(_computed[index], _copied[index])


def compute(index: int, seconds: float) -> Interval:
    """An operation on device `index` that took `seconds` here; when it starts and ends."""
    start, needed = now(index), seconds / speed[index]
    _wait(index, start)
    _spent[index].busy += needed
    _computed[index] = start + needed
    return start, _computed[index]


def transfer(source: Place, target: Place, nbytes: int, *, ready: float = 0.0, slower: float = 1.0) -> Interval:
    """A copy of `nbytes` between two devices, or HOST and one, of data that is there from `ready` on.

    Returns when it starts and when it is done. `slower` multiplies the time that the link needs.
    """
    global _host
    ends = [index for index in (source, target) if index != HOST]
    start = max(ready, _host, _busy.get((source, target), 0.0), *(_computed[index] for index in ends))
    done = start + (link.latency + nbytes / link.bytes_per_second) * slower
    _busy[source, target] = done
    for index in ends:
        _since[index][len(ends) == 1].append((start, done))
    if target == HOST:
        _host = max(_host, done)
    for index in range(len(_copied)) if target == HOST else ends:
        _copied[index] = max(_copied[index], done)
    return start, done


def synchronize(index: int | None = None) -> None:
    """Let every device wait for device `index`, or for the last of all."""
    latest = max(map(now, range(len(speed))), default=0.0) if index is None else now(index)
    for other in range(len(speed)):
        _wait(other, max(now(other), latest))


def sums() -> list[Spent]:
    """What each device's time was spent on, up to its last operation or alignment."""
    return [replace(spent) for spent in _spent]


def _wait(index: int, until: float) -> None:
    """Device `index` does nothing but its copies up to `until`, when all of them are done."""
    between, host = _since[index]
    copying, both = _covered(between), _covered(between + host)
    spent = _spent[index]
    spent.exposed += copying
    spent.input += both - copying
    spent.idle += until - _computed[index] - both
    _computed[index] = until
    between.clear()
    host.clear()


def _covered(intervals: list[Interval]) -> float:
    """Seconds in at least one of the intervals."""
    total, end = 0.0, 0.0
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def reset() -> None:
    """Clocks at 0, full speed, the default link."""
    global _host
    link.bytes_per_second, link.latency = Link().bytes_per_second, Link().latency
    _host = 0.0
    _busy.clear()
    for index in range(len(speed)):
        speed[index], _computed[index], _copied[index] = 1.0, 0.0, 0.0
        _spent[index], _since[index] = Spent(), ([], [])
