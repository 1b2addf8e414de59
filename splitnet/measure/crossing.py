"""What collectives carry from rank to rank: the records that all ranks of one exchange have, put together.

all_gather      each rank's share to every other
reduce_scatter  each rank's part for every other
gather          each rank's share to tower 0
scatter         tower 0's parts to the others
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any, NamedTuple

from splitnet.measure.reading import Rank
from splitnet.measure.work import COMMUNICATION, Work

KINDS = {
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "broadcast": "broadcast",
    "gather": "gather",
    "scatter": "scatter",
    "reduce": "reduce",
}
"""By part of a record's name, the more special first."""


def kind_of(event: Any) -> str | None:
    """`all_gather` for c10d::_allgather_base_, gloo:all_gather and ncclDevKernel_AllGather_RING_LL(…)."""
    for said in (event["name"], event["args"].get("Collective name", "")):
        called = said.lower().replace("_", "")
        for part, kind in KINDS.items():
            if part in called:
                return kind
    return None


class Crossing(NamedTuple):
    """What one rank sent another: the records that both have of one collective."""

    sender: Work
    reader: Work
    bytes: int | None

    @property
    def work(self) -> Work:
        """From when both are there to when the reader has what it waited for."""
        start = max(self.sender.start, self.reader.start)
        times = (start, max(self.reader.end, start))
        ends = (self.bytes, self.sender.device, self.reader.device)
        place = (COMMUNICATION, self.sender.phase, self.sender.row)
        return Work(self.sender.event, self.reader.device, *place, *times, *ends)


def crossed(done: Sequence[Work], ranks: Sequence[Rank]) -> list[Crossing]:
    """What crossed in one step.

    The first collective of a row and phase on one rank is the first on another; where ranks have not equally many,
    nothing is put together.
    """
    by_place: defaultdict[tuple[int, str, str], defaultdict[int, list[Work]]] = defaultdict(lambda: defaultdict(list))
    for work in done:
        if work.kind == COMMUNICATION and work.row and work.target is None and work.source == work.device:
            by_place[ranks[work.device].replica, work.phase, work.row][work.device].append(work)
    found: list[Crossing] = []
    for (replica, _, _), mine in by_place.items():
        lanes = [lane for lane, rank in enumerate(ranks) if rank.replica == replica]
        lanes.sort(key=lambda lane: ranks[lane].tower)
        if len({len(mine[lane]) for lane in lanes}) == 1:
            for together in zip(*(mine[lane] for lane in lanes), strict=True):
                found += _carried(together)
    return found


def _carried(together: Sequence[Work]) -> Iterator[Crossing]:
    """`together`: one collective on each rank of a group, tower 0's first."""
    kinds = {kind_of(work.event) for work in together}
    first, many = together[0], len(together)
    for sender, reader in permutations(together, 2):
        if kinds == {"all_gather"} or (kinds == {"gather"} and reader is first):
            yield Crossing(sender, reader, sender.bytes)
        elif kinds == {"reduce_scatter"} or (kinds == {"scatter"} and sender is first):
            yield Crossing(sender, reader, None if sender.bytes is None else sender.bytes // many)
