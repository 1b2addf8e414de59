"""A clock for each fake device, in seconds: emulated time, as if every device ran on its own.

An operation moves its device's clock by the time that it took here, divided by the device's speed. A copy
starts when both of its devices have done what was asked of them before, its data is there and the link is
free in that direction; it takes the link's latency and bytes over bandwidth. Both directions of a link run
at once, and each device's next operation waits for all copies to and from it.

Every device has links to every other one and to the host, all alike. The host itself takes no time, but it
waits: nothing starts on any device before a copy to the host that was asked for earlier is done.
"""

from dataclasses import dataclass

from splitnet.parallel.fake.devices import HOST, Place


@dataclass(slots=True)
class Link:
    """What every link is like. The defaults are a PCIe 3 x16 slot as programs see it."""

    bytes_per_second: float = 12e9
    latency: float = 10e-6  # seconds


link = Link()
speed: list[float] = []
_computed: list[float] = []  # when the operations so far are done
_copied: list[float] = []  # when the copies so far are done
_busy: dict[tuple[Place, Place], float] = {}  # (source, target): when that direction of the link is free


def grow(devices: int) -> None:
    """Start clocks at 0 for devices up to `devices`."""
    new = devices - len(speed)
    speed.extend([1.0] * new)
    _computed.extend([0.0] * new)
    _copied.extend([0.0] * new)


def now(index: int) -> float:
    """When device `index` has done everything asked of it."""
    return max(_computed[index], _copied[index])


def compute(index: int, seconds: float) -> None:
    """An operation on device `index` that took `seconds` here."""
    _computed[index] = max(_computed[index], _copied[index]) + seconds / speed[index]


def transfer(source: Place, target: Place, nbytes: int, *, ready: float = 0.0, slower: float = 1.0) -> float:
    """A copy of `nbytes` between two devices, or HOST and one, of data that is there from `ready` on.

    Returns when it is done. `slower` multiplies the time that the link needs.
    """
    ends = [index for index in (source, target) if index != HOST]
    start = max(ready, _busy.get((source, target), 0.0), *(_computed[index] for index in ends))
    done = start + (link.latency + nbytes / link.bytes_per_second) * slower
    _busy[source, target] = done
    for index in range(len(_copied)) if target == HOST else ends:
        _copied[index] = max(_copied[index], done)
    return done


def synchronize(index: int | None = None) -> None:
    """Let every device wait for device `index`, or for the last of all."""
    latest = max(map(now, range(len(speed))), default=0.0) if index is None else now(index)
    for other in range(len(speed)):
        _computed[other] = max(now(other), latest)


def reset() -> None:
    """Clocks at 0, full speed, the default link."""
    link.bytes_per_second, link.latency = Link().bytes_per_second, Link().latency
    _busy.clear()
    for index in range(len(speed)):
        speed[index], _computed[index], _copied[index] = 1.0, 0.0, 0.0
