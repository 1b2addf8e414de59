"""A clock for each fake device, in seconds: emulated time, as if every device ran on its own.

An operation moves its device's clock by the time that it took here, divided by the device's speed. A copy
starts when both of its devices have done what was asked of them before, its data is there and the link is
free in that direction; it takes the link's latency and bytes over bandwidth. Both directions of a link run
at once, and each device's next operation waits for all copies to and from it, but for those that a stream beside
the main one was asked for (`Stream`): what waits for that stream waits for them.

Every device has links to every other one and to the host, all alike. The host itself takes no time, but it
waits: nothing starts on any device before a copy to the host that was asked for earlier is done.

Each clock also adds up what its time was spent on (`Spent`): work, copies, or nothing.

Beside times there is an order, which knows no luck: what a stream was asked is done before what another one is asked
only where that one, or the host, has waited for it (`before`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

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


@dataclass(slots=True, eq=False)
class Stream:
    """A queue of one device beside its main one: copies in it run while the main one computes."""

    index: int
    done: float = 0.0
    """When all that was asked of it is done."""
    last: int = 0
    """Number of what it was asked last, among all that was asked of anybody."""
    knows: "Moment" = field(default_factory=dict)
    """What it has waited for."""


Moment = dict[Stream, int]
"""Of streams the last that is done."""


link = Link()
speed: list[float] = []
_computed: list[float] = []  # when the operations so far are done
_copied: list[float] = []  # when the copies so far are done
_busy: dict[tuple[Place, Place], float] = {}  # (source, target): when that direction of the link is free
_host = 0.0  # when the copies to the host so far are done
_spent: list[Spent] = []  # up to `_closed`
_closed: list[float] = []  # before that nothing can start any more: the host had waited until then
_since: list[tuple[list[Interval], list[Interval], list[Interval]]] = []  # after it: work, devices' copies, the host's
_current: list[Stream | None] = []  # the stream that copies are asked of; None: the main one
_aside: list[float] = []  # when the copies of all other streams are done
_asked = 0  # operations and copies, of all devices
_mains: list[Stream] = []  # each device's main stream, in the order of what was asked
_synced: list[int] = []  # all that was asked of a device up to then, the host has waited for
_host_knows: Moment = {}
beside: list[bool] = []
"""Whether a device was ever asked of another stream than its main one."""
resets = 0
"""How often the clocks began again: what was noted before has another zero."""


def grow(devices: int) -> None:
    """Start clocks at 0 for devices up to `devices`."""
    for _ in range(len(speed), devices):
        speed.append(1.0)
        _computed.append(0.0)
        _copied.append(0.0)
        _spent.append(Spent())
        _closed.append(0.0)
        _since.append(([], [], []))
        _current.append(None)
        _aside.append(0.0)
        beside.append(False)
        _mains.append(Stream(len(_mains)))
        _synced.append(0)


def now(index: int) -> float:
    """When device `index` has done everything asked of it."""
    return max(_computed[index], _copied[index], _aside[index])


def ready(index: int, stream: Stream | None = None) -> float:
    """When a stream of device `index`, its main one without `stream`, has done everything asked of it."""
    return max(_computed[index], _copied[index]) if stream is None else stream.done


def last(index: int, stream: Stream | None) -> int:
    """Number of what a stream of device `index` was asked last."""
    return _queue(index, stream).last


def moment(index: int, stream: Stream | None) -> Moment:
    """What is done when a stream of device `index` has done all that it was asked so far."""
    queue = _queue(index, stream)
    return queue.knows | {queue: queue.last}


def learn(index: int, stream: Stream | None, found: Moment) -> None:
    """A stream of device `index` has waited for that moment."""
    _learn(_queue(index, stream).knows, found)


def tell_host(found: Moment) -> None:
    """The host has waited for that moment."""
    _learn(_host_knows, found)


def before(index: int, stream: Stream | None, other: Stream | None, number: int) -> bool:
    """Whether what `other` was asked as `number` is done before whatever `stream`, of one device, is asked next."""
    one, two = _queue(index, stream), _queue(index, other)
    return one is two or number <= max(one.knows.get(two, 0), _host_knows.get(two, 0), _synced[index])


def _queue(index: int, stream: Stream | None) -> Stream:
    return _mains[index] if stream is None else stream


def _learn(knows: Moment, found: Moment) -> None:
    for stream, number in found.items():
        knows[stream] = max(knows.get(stream, 0), number)


def _ask(index: int) -> None:
    """Something is asked of the current stream."""
    global _asked
    _asked += 1
    _queue(index, _current[index]).last = _asked


def waited(index: int) -> float:
    """Up to when the stream of device `index` that is asked now has waited for copies to and from it."""
    stream = _current[index]
    return _copied[index] if stream is None else stream.done


def current(index: int) -> Stream | None:
    """The stream of device `index` that is asked for copies; None: the main one."""
    return _current[index]


def use(index: int, stream: Stream | None) -> None:
    """Ask this stream from now on."""
    _current[index] = stream
    beside[index] = beside[index] or stream is not None


def wait(index: int, stream: Stream | None, until: float) -> None:
    """Let a stream's next operation start no earlier than `until`."""
    if stream is None:
        _copied[index] = max(_copied[index], until)
    else:
        stream.done = max(stream.done, until)


def compute(index: int, seconds: float) -> Interval:
    """An operation on device `index` that took `seconds` here; when it starts and ends."""
    _ask(index)
    stream, needed = _current[index], seconds / speed[index]
    start = max(ready(index), 0.0 if stream is None else stream.done)  # a device computes one thing at a time
    _computed[index] = start + needed
    _since[index][0].append((start, _computed[index]))
    if stream is not None:
        stream.done = _computed[index]
    return start, _computed[index]


def transfer(source: Place, target: Place, nbytes: int, *, ready: float = 0.0, slower: float = 1.0) -> Interval:
    """A copy of `nbytes` between two devices, or HOST and one, of data that is there from `ready` on.

    Returns when it starts and when it is done. `slower` multiplies the time that the link needs.
    """
    global _host
    ends = [index for index in (source, target) if index != HOST]
    asked = [_computed[index] if (stream := _current[index]) is None else stream.done for index in ends]
    start = max(ready, _host, _busy.get((source, target), 0.0), *asked)
    done = start + (link.latency + nbytes / link.bytes_per_second) * slower
    _busy[source, target] = done
    _order(source, target)
    for index in ends:
        _since[index][1 if len(ends) == 2 else 2].append((start, done))
        _aside[index] = max(_aside[index], done)
    if target == HOST:
        _host = max(_host, done)
    for index in range(len(_copied)) if target == HOST else ends:
        wait(index, None if target == HOST else _current[index], done)
        if target == HOST:
            _close(index, _host)
    return start, done


def _order(source: Place, target: Place) -> None:
    """As CUDA has it: a copy is one of the source's stream, which waits for the target's, and that one for the copy."""
    if source != HOST and target != HOST:
        learn(source, _current[source], moment(target, _current[target]))
    for index in (source, target):
        if index != HOST:
            _ask(index)
    if source != HOST:
        found = moment(source, _current[source])
        if target == HOST:
            tell_host(found)
        else:
            learn(target, _current[target], found)


def synchronize(index: int | None = None) -> None:
    """Let every device, and the host, wait for device `index`, or for the last of all."""
    global _host
    for waited_for in range(len(_synced)) if index is None else [index]:
        _synced[waited_for] = _asked
    latest = max(map(now, range(len(speed))), default=0.0) if index is None else now(index)
    _host = max(_host, latest)  # which cannot have asked for what comes next any earlier
    for other in range(len(speed)):
        until = max(now(other), latest)
        _computed[other] = _copied[other] = until
        _close(other, min(until, _host))


def sums() -> list[Spent]:
    """What each device's time was spent on, up to its last operation or alignment."""
    return [_spent_until(index, max(_computed[index], _closed[index])) for index in range(len(speed))]


def _spent_until(index: int, until: float) -> Spent:
    """What a device's time was spent on up to then, by what was asked of it so far."""
    work, between, host = _since[index]
    since, before = _closed[index], _spent[index]
    busy = _covered(work, since, until)
    copying = _covered([*work, *between], since, until)
    input_ = _covered([*work, *between, *host], since, until)
    return Spent(
        before.busy + busy,
        before.exposed + copying - busy,
        before.input + input_ - copying,
        before.idle + until - since - input_,
    )


def _close(index: int, until: float) -> None:
    """Add up what a device did before `until`, where nothing more can come to be."""
    if until <= _closed[index]:
        return
    _spent[index], _closed[index] = _spent_until(index, until), until
    for kind in _since[index]:
        kind[:] = [interval for interval in kind if interval[1] > until]


def _covered(intervals: Iterable[Interval], since: float, until: float) -> float:
    """Seconds from `since` to `until` that are in at least one of the intervals."""
    total, end = 0.0, since
    for start, stop in sorted(intervals):
        total += max(0.0, min(stop, until) - max(start, end))
        end = max(end, stop)
    return total


def reset() -> None:
    """Clocks at 0, full speed, the default link."""
    global _host, resets
    resets += 1
    link.bytes_per_second, link.latency = Link().bytes_per_second, Link().latency
    _host = 0.0
    _busy.clear()
    for index in range(len(speed)):
        speed[index], _computed[index], _copied[index] = 1.0, 0.0, 0.0
        _spent[index], _closed[index], _since[index] = Spent(), 0.0, ([], [], [])
        _current[index], _aside[index] = None, 0.0
