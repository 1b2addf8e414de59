"""The comparison where a run has several processes: all train together, or the first alone while the others wait."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from splitnet.comparison import WAITING, WARM_UP, Contender, Training, concluded, crossings, described
from splitnet.fitting import DoesNotFitError
from splitnet.measure.meter import OtherLoad, synchronize
from splitnet.network.architecture import Architecture
from splitnet.network.presets import PRESETS
from splitnet.network.towers import Record, SplitNet
from splitnet.parallel import gradients
from splitnet.parallel import ranks as processes
from splitnet.parallel.exchange import Ledger, Link
from splitnet.parallel.placement import Placement, host
from splitnet.parallel.ranks import Ranks
from splitnet.parallel.replicas import GRADIENTS, summed_bytes
from splitnet.training.loop import training_step
from splitnet.training.sharing import Interrupted, Stop, share_of, together


@dataclass
class RankContender(Contender):
    """A layout in which every process takes part: the towers of the run, or the whole network in each of them.

    Each calls everything in step with the others; the first has the figures.
    """

    ranks: Ranks = field(kw_only=True)
    """Who shares a batch here: for replicas of the whole network, towers of one."""

    def _network(self) -> SplitNet:
        net = host(self.architecture, self.placement, self.training.seed, self.training.link, self.execution)
        self.gradients = Ledger()
        self.model = gradients.replicated(net, self.ranks, self.gradients)
        return net

    def step(self, number: int) -> None:
        """Over when it is over in every process."""
        assert isinstance(self.net, SplitNet)
        batch = self.drawn(share_of(self.training.batches[number], self.ranks))
        self.net.moment = replace(self.net.moment, step=number, first_image=batch.first)
        self.outcome = [training_step(self.net, self.optimizer, batch, self.model, self.view)[0]]
        synchronize(self.placement.devices)
        self.ranks.meet(f"measuring {self.name}")

    def measure(self, number: int) -> None:
        self.ranks.meet(f"measuring {self.name}")
        super().measure(number)

    def _keep_loss(self) -> None:
        super()._keep_loss()
        [self.losses[-1]] = together([self.losses[-1]], Stop(), self.ranks, "the losses")

    def collect(self) -> None:
        """Bring together what each process knows of its own."""
        self._everybody = Ledger()
        for own in self.ranks.objects((*self.net.ledger.transfers(), *self.gradients.transfers()), "ledgers"):
            self._everybody.add(own)
        found = self.ranks.objects(list(self.memory.items()), "memory")
        self.memory = {f"rank {rank} {device}": m for rank, own in enumerate(found) for device, m in own}

    def described(self) -> dict[str, Any]:
        return described(self.name, self.architecture, [f"rank {rank}" for rank in range(self.ranks.world)])

    def _ledger(self) -> Record:
        return self._everybody

    def _derived(self) -> dict[str, int]:
        replicas, images = self.ranks.replicas, len(self.training.batches[0].labels)
        padded, size = -(-images // replicas) * replicas, self.execution.itemsize
        found = {} if self.placement.whole else crossings(self.architecture, padded, size)
        if replicas > 1:
            found[GRADIENTS] = summed_bytes(self.architecture.parameters, replicas)
        return found


@dataclass(frozen=True)
class Entrant:
    """A layout that may be measured; `alone`: in the first process."""

    name: str
    architecture: Architecture
    placement: Placement
    ranks: Ranks
    alone: bool = False

    def made(self, training: Training, limit: int | None) -> Contender:
        where = (self.name, self.architecture, self.placement, training, limit)
        return Contender(*where) if self.alone else RankContender(*where, ranks=self.ranks)


def entrants(
    architecture: Architecture, placement: Placement, link: Link = "device", overlap: bool = False
) -> Iterator[Entrant]:
    """The run's own layout, the same function whole in the first process, replicas of it in all, the dense network.

    Where its towers overlap, also towers that wait.
    """
    ranks = placement.ranks
    assert ranks is not None
    single = Placement(placement.devices, "the first process")
    if not placement.whole:
        yield Entrant("towers", architecture, placement, ranks)
        if overlap:
            yield Entrant(WAITING, architecture, placement, ranks)
    yield Entrant("whole" if architecture.towers > 1 else "dense", architecture, single, ranks, alone=True)
    if ranks.world > 1 and (link == "device" or ranks.device.type == "cpu"):  # sums of gradients take no other way
        yield Entrant("replicas", architecture, single, ranks.as_replicas())
    dense = PRESETS.get(architecture.name)
    if architecture.towers > 1 and dense is not None and dense.divides(1):
        yield Entrant("dense", replace(architecture, towers=1), single, ranks, alone=True)


def compare_ranks(
    architecture: Architecture,
    placement: Placement,
    training: Training,
    rounds: int,
    limit: int | None,
    stop: Stop,
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """As `comparison.compare`, called by every process; the first has the comparison, the others {}.

    A layout of all processes that does not fit in one of them is DoesNotFitError there.
    """
    ranks = placement.ranks
    assert ranks is not None
    known = list(entrants(architecture, placement, training.link, training.execution.overlap))
    running: dict[str, Contender] = {}
    left_out: dict[str, dict[str, Any]] = {}
    beside = OtherLoad()
    for turn in range(rounds + 1):
        yield f"measuring in alternation: round {turn} of {rounds}" if turn else "warming up", None
        for entrant in known:
            why = _take_turn(entrant, running, turn, (training, limit)) if entrant.name not in left_out else None
            if entrant.alone:
                processes.wait_for_first(f"measuring {entrant.name}, {turn}")  # it may take long
            if why := ranks.from_first(why, f"measuring {entrant.name}"):
                running.pop(entrant.name, None)
                names = described(entrant.name, entrant.architecture, ["rank 0"])
                left_out[entrant.name] = names | {"does_not_fit": why}
            together([], stop, ranks, "measuring")
            if stop.agreed:
                raise Interrupted(stop.agreed)
        if not turn:
            beside = OtherLoad()
    for contender in running.values():
        if isinstance(contender, RankContender):
            contender.collect()
    spent = ranks.objects((socket.gethostname(), beside.own()), "the other load")
    partners = sum(seconds for name, seconds in spent[1:] if name == spent[0][0])
    if ranks.rank != 0:
        yield "", {}
        return
    order = [entrant.name for entrant in known]
    yield "", concluded(order, running, left_out, rounds, beside.cores(partners))


def _take_turn(
    entrant: Entrant, running: dict[str, Contender], turn: int, settings: tuple[Training, int | None]
) -> str | None:
    """Warm a layout up, or measure a step of it, if this process takes part. Returns why it does not fit, if so."""
    if entrant.alone and entrant.ranks.rank != 0:
        return None
    try:
        if turn:
            running[entrant.name].measure(WARM_UP + turn - 1)
        else:
            running[entrant.name] = entrant.made(*settings)
    except DoesNotFitError as error:
        if not entrant.alone:  # the others are in the middle of it
            raise
        return str(error)
    return None
