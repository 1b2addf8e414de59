"""Was everything that crossed known to the table? Ledger, table and, on fake devices, every copy are held together."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from splitnet.network.architecture import Architecture, Transfer
from splitnet.parallel import exchange, fake, overlap
from splitnet.parallel.placement import Placement

PACKAGE = Path(exchange.__file__).parents[1]
LOOP = "training/loop.py"
MEMORY = "training/optimizer_state.py"
HOST_SENDERS = (LOOP, "parallel/exchange.py", "parallel/placement.py", "network/weights.py", MEMORY)
"""Where labels, images and weights leave the host."""
HOST_READERS = (LOOP, "network/weights.py", MEMORY)
"""Where a step's outcome and weights reach it."""
OUTCOME = 24
"""Most bytes that the loop reads after a step (loss, images right) or a test batch (top-5 as well), in float64."""

EXCHANGES = (Path(exchange.__file__), Path(overlap.__file__))
"""Where what crosses is copied."""

DETOUR = frozenset(line for *_, line in exchange.through_host.__code__.co_lines() if line)
"""Lines of exchange.py that copy to the host and from it what crosses by way of it."""

Pair = tuple[str, str, str]
"""Source and target device, and the phase."""


class UnknownCopyError(RuntimeError):
    """Something was communicated that the table does not know, or the other way round."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What was exchanged, all of it in the table. Bytes and counts over all steps and tests."""

    bytes: int
    copies: int | None
    """Copies between the devices of the run, each of them known; None where devices do not tell."""
    host_copies: int | None
    """Copies between a device and the host."""
    link: exchange.Link = "device"

    def __str__(self) -> str:
        known = f"{self.bytes:,} bytes were exchanged: as the table derives, to the byte"
        if self.copies is None:
            return f"{known}."
        if self.link == "host":
            return f"{known}, and all of them through the host (copies to it and from it: {self.host_copies:,})."
        if not self.copies:
            return f"{known}, and nothing was copied between devices (to and from the host: {self.host_copies:,})."
        return (
            f"{known}, and all {self.copies:,} copies between devices are among them"
            f" (to and from the host: {self.host_copies:,})."
        )


def audit(
    architecture: Architecture,
    placement: Placement,
    ledger: Iterable[Transfer],
    forward: int,
    backward: int,
    link: exchange.Link = "device",
    itemsize: int = 4,
) -> Audit:
    """Hold a ledger, since it was cleared, against the table for `forward` images, `backward` of them learnt from.

    On fake devices also against `fake.copies()`, since those were cleared: what crossed went straight, or all of it
    through the host, as `link` says. UnknownCopyError names the first row, or file and line, that does not fit.
    """
    recorded = Counter({_place(t): t.bytes for t in ledger})
    expected = (
        Counter() if placement.whole else _expected(architecture, itemsize, {"forward": forward, "backward": backward})
    )
    for place in dict.fromkeys([*expected, *recorded]):
        if recorded[place] != expected[place]:
            row, phase, source, target = place
            raise UnknownCopyError(
                f"{row}, {phase}, tower {source} to tower {target}: {recorded[place]:,} bytes were exchanged,"
                f" the table says {expected[place]:,}"
            )
    if not all(device.type == "fake" for device in placement.devices):
        return Audit(recorded.total(), None, None, link)
    copies = fake.copies()
    host = Counter({copy: n for copy, n in copies.items() if "cpu" in (copy.source, copy.target)})
    crossed = copies - host
    if link == "host":
        _hold_none(crossed)
        crossed = Counter({copy: n for copy, n in host.items() if _is_detour(copy)})
        _hold_host(host - crossed)
    else:
        _hold_host(host)
    _hold_crossed(crossed, _pairs(recorded, placement, link))
    return Audit(recorded.total(), (copies - host).total(), host.total(), link)


def _place(transfer: Transfer) -> tuple[str, str, int, int]:
    return (transfer.row, transfer.phase, transfer.source, transfer.target)


def _expected(architecture: Architecture, itemsize: int, images: dict[str, int]) -> Counter[tuple[str, str, int, int]]:
    transfers = architecture.transfers(1, itemsize)
    return Counter({_place(t): t.bytes * images[t.phase] for t in transfers if images[t.phase]})


def _hold_host(copies: Counter[fake.Copy]) -> None:
    """Images, labels and weights in; a step's loss and count, and weights, out. Nothing else, and nothing backward."""
    for copy in copies:
        out = copy.target == "cpu"
        known = any(Path(copy.file) == PACKAGE / file for file in (HOST_READERS if out else HOST_SENDERS))
        too_much = out and Path(copy.file) == PACKAGE / LOOP and copy.bytes > OUTCOME
        if not known or too_much or copy.phase == "backward":
            raise UnknownCopyError(
                f"{copy.file}:{copy.line} copies {copy.bytes:,} bytes from {copy.source} to {copy.target}"
                f" ({copy.phase}), which is neither images, labels, weights nor a step's outcome"
            )


def _is_detour(copy: fake.Copy) -> bool:
    return Path(copy.file) == Path(exchange.__file__) and copy.line in DETOUR


def _hold_none(copies: Iterable[fake.Copy]) -> None:
    for copy in copies:
        raise UnknownCopyError(
            f"{copy.file}:{copy.line} copies {copy.bytes:,} bytes from {copy.source} to {copy.target}"
            f" ({copy.phase}), and not through the host"
        )


def _pairs(recorded: Counter[tuple[str, str, int, int]], where: Placement, link: exchange.Link) -> Counter[Pair]:
    """The ledger's bytes by devices and phase: those between two, by way of the host where the link is that."""
    known: Counter[Pair] = Counter()
    for (_, phase, source, target), size in recorded.items():
        ends = (str(where.devices[source]), str(where.devices[target]))
        if ends[0] != ends[1]:
            for here, there in [ends] if link == "device" else [(ends[0], "cpu"), ("cpu", ends[1])]:
                known[here, there, phase] += size
    return known


def _hold_crossed(copies: Counter[fake.Copy], known: Counter[Pair]) -> None:
    found: Counter[Pair] = Counter()
    for copy, count in copies.items():
        if Path(copy.file) not in EXCHANGES:
            raise UnknownCopyError(
                f"{copy.file}:{copy.line} copies {copy.bytes:,} bytes from {copy.source} to {copy.target}"
                f" ({copy.phase}), which is no crossing of the table"
            )
        found[copy.source, copy.target, copy.phase] += count * copy.bytes
    if found != known:  # Counters are equal where one lacks what the other has none of
        raise UnknownCopyError(f"what was copied {dict(found)} is not what the ledger says {dict(known)}")
