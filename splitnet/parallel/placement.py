"""Which devices the towers live on, and the network built there."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from splitnet.errors import UsageError
from splitnet.network import weights
from splitnet.network.architecture import Architecture
from splitnet.network.execution import Execution, Precision
from splitnet.network.execution import Wire as WireType
from splitnet.network.layers import Moment
from splitnet.network.presets import preset
from splitnet.network.towers import Exchange, SplitNet, Tower
from splitnet.parallel import fake
from splitnet.parallel.capabilities import check_execution, use_precision
from splitnet.parallel.collective import CollectiveExchange
from splitnet.parallel.exchange import Link, LocalExchange, SharedDeviceExchange, UndividedExchange, Wire
from splitnet.parallel.ranks import Ranks, check_divides, of_job

Device = str | torch.device


@dataclass(frozen=True, slots=True)
class Placement:
    """Where towers go: one device each, or one for all of them in one piece; and why."""

    devices: tuple[torch.device, ...]
    """In this process."""
    reason: str
    ranks: Ranks | None = None
    """Where this process is one of several: it hosts its tower, or with one tower the whole network."""

    @property
    def whole(self) -> bool:
        """One device for the whole network, in one piece."""
        return len(self.devices) == 1 and (self.ranks is None or self.ranks.towers == 1)

    @property
    def count(self) -> int:
        """Devices of the job; each process has its own."""
        return len(self.devices) if self.ranks is None else self.ranks.world

    def __str__(self) -> str:
        if self.ranks is not None:
            copies = f", {self.ranks.replicas} replicas" if self.ranks.replicas > 1 else ""
            return f"{self.ranks.world} processes{copies}"
        return ", ".join(map(str, self.devices))

    def of_tower(self, tower: int) -> str:
        """Where a tower is: its device, or its process."""
        if self.ranks is not None:
            return f"rank {tower}" if self.ranks.towers > 1 else "each rank"
        return str(self.devices[0 if self.whole else tower])


def place(architecture: Architecture, devices: Sequence[Device] | None = None, ranks: Ranks | None = None) -> Placement:
    """The devices asked for, checked, or the best there are. UsageError if they cannot be had.

    Installs fake devices if one is asked for or chosen: as many as there are towers, at least two. With `ranks`
    each process has its one device.
    """
    if ranks is not None:
        return Placement((ranks.device,), ranks.reason, ranks)
    names, reason = _best(architecture) if devices is None else _asked(architecture, [str(d) for d in devices])
    if any(_kind(name) == "fake" for name in names):
        fake.install(max(2, architecture.towers))  # only now does PyTorch know the word
    return Placement(tuple(map(_existing, names)), reason)


def _best(architecture: Architecture) -> tuple[list[str], str]:
    towers, gpus = architecture.towers, torch.cuda.device_count()
    if towers == 1 or architecture.norm.across_towers:
        why = "one tower" if towers == 1 else f"{architecture.name}'s norms read every tower"
        return ["cuda:0" if gpus else "cpu"], f"{why}, so one device; {gpus or 'no'} GPU{'s' * (gpus != 1)} found"
    if gpus >= towers:
        return [f"cuda:{i}" for i in range(towers)], f"{gpus} GPUs found, one for each tower"
    if gpus:
        found = f"{gpus} GPU{'s' * (gpus > 1)} found for {towers} towers"
        return ["cuda:0"] * towers, f"{found}: all share the first, and nothing crosses a link"
    return [f"fake:{i}" for i in range(towers)], f"no GPU found: {towers} fake devices stand in"


def _asked(architecture: Architecture, names: list[str]) -> tuple[list[str], str]:
    towers, asked = architecture.towers, ",".join(names)
    if len(names) not in {1, towers}:
        wanted = "name one" if towers == 1 else f"name {towers}, or one for the whole network"
        raise UsageError(f"--devices {asked}: {len(names)} devices for --towers {towers}; {wanted}")
    if len(names) > 1 and architecture.norm.across_towers:
        raise UsageError(
            f"--devices {asked}: {architecture.name}'s norms read both towers, so it takes one device"
            " (alexnet-paper is the one to split)"
        )
    if len(names) == towers:
        return names, "as asked"
    return names, f"as asked: all {towers} towers in one piece"


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _existing(name: str) -> torch.device:
    """The device of that name, with its index. UsageError if it is not there."""
    try:
        if _kind(name) in {"lazy", "privateuseone"}:  # what fake devices are called inside PyTorch
            raise RuntimeError
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--devices {name}: no such kind of device (cuda:0, cpu, fake:0, …)") from error
    if device.type in {"cuda", "fake"}:
        device = torch.device(device.type, device.index or 0)
        count = torch.get_device_module(device).device_count()
        if device.index >= count:
            there = ", ".join(f"{device.type}:{i}" for i in range(count)) or "there is none of this kind"
            raise UsageError(f"--devices {name}: no such device ({there})")
    elif device.type == "cpu" and device.index:
        raise UsageError(f"--devices {name}: there is one CPU, cpu (fake:0 and fake:1 can be told apart)")
    elif device.type == "cpu":
        device = torch.device("cpu")  # cpu:0 is no other
    else:
        _check_computes(device)
    return device


def _check_computes(device: torch.device) -> None:
    try:
        torch.ones(1, device=device).add(1).item()
    except Exception as error:  # each backend has its own way of not being there
        raise UsageError(f"--devices {device}: does not compute on this machine") from error


def check_processes(architecture: Architecture, devices: str | None) -> None:
    """UsageError for what the processes of a job cannot do."""
    check_divides(architecture.towers)
    if architecture.norm.across_towers and architecture.towers > 1:
        raise UsageError(f"--preset {architecture.name}: its norms read both towers, so it takes one process")
    if devices is not None:
        raise UsageError(f"--devices {devices}: under torchrun each process has its own device; leave it out")


def describe(placement: Placement) -> list[dict[str, Any]]:
    """Each device's name, and to which of the others it reads and writes without the host (None: no GPU)."""
    found: list[dict[str, Any]] = []
    for device in dict.fromkeys(placement.devices):
        gpus = [d for d in dict.fromkeys(placement.devices) if d.type == device.type == "cuda" and d != device]
        module = None if device.type == "cpu" else torch.get_device_module(device)
        peers = {str(d): torch.cuda.can_device_access_peer(device, d) for d in gpus}
        name = getattr(module, "get_device_name", str)(device)
        found.append({"device": str(device), "name": name, "peer_access": peers or None})
    ranks = placement.ranks
    if ranks is not None:
        where = {"device": f"rank {ranks.rank}", "tower": ranks.tower, "replica": ranks.replica}
        found = [{**entry, **where, "name": f"{entry['name']} of {socket.gethostname()}"} for entry in found]
    return found


def build(
    architecture: str | Architecture,
    towers: int | None = None,
    devices: Sequence[Device] | None = None,
    seed: int = 0,
    *,
    crosses: str | None = None,
    channels: int | None = None,
    classes: int | None = None,
    precision: Precision = "float32",
    wire: WireType | None = None,
    overlap: bool = False,
    compile: bool = False,  # noqa: A002 the option's name
) -> SplitNet:
    """A network on its devices, with PyTorch's own initial weights drawn whole from `seed`.

    `architecture` is a preset's name (two towers unless said) or a table, with its own number of towers
    unless said. One device for several towers: the same function in one piece on it. In a process that torchrun
    started, without `devices`: its own tower, joined with the others by collectives. `precision`, `wire`, `overlap` and
    `compile` as in `Execution`; whether CUDA rounds float32 products to tf32 is the process's setting, and that of the
    network built last. UsageError for what cannot be built.
    """
    if isinstance(architecture, str):
        architecture = preset(architecture, 2 if towers is None else towers, crosses)
    elif towers is not None:
        architecture = architecture.split(towers)
    architecture = architecture.adapted(channels, classes)
    ranks = of_job(architecture.towers) if devices is None else None
    placement, execution = place(architecture, devices, ranks), Execution(precision, wire, overlap, compile)
    check_execution(execution, placement.devices, placement.ranks)
    return host(architecture, placement, seed, execution=execution)


def host(
    architecture: Architecture,
    placement: Placement,
    seed: int,
    link: Link = "device",
    execution: Execution = Execution(),
) -> SplitNet:
    """The towers of this process on the devices of a placement; activations cross by `link`."""
    use_precision(execution)
    towers = [Tower(architecture, share, execution) for share in _shares(architecture, placement)]
    exchange = _exchange(placement, link, Wire(execution.crosses_as))
    net = SplitNet(architecture, towers, exchange, execution)
    net.moment = Moment(seed)
    net.load_whole_state_dict(weights.draw(architecture, seed))
    for tower, device in zip(net.hosted, placement.devices, strict=True):
        tower.to(device)
        # the format that convolutions are fast in, on CPUs and GPUs; activations follow the weights
        tower.to(memory_format=torch.channels_last)
    return net


def _shares(architecture: Architecture, placement: Placement) -> list[range]:
    """Which towers are together in one piece, piece by piece."""
    if placement.whole:
        return [range(architecture.towers)]
    hosted = range(architecture.towers) if placement.ranks is None else [placement.ranks.tower]
    return [range(tower, tower + 1) for tower in hosted]


def _exchange(placement: Placement, link: Link, wire: Wire) -> Exchange:
    ranks = placement.ranks
    if ranks is not None and not placement.whole:
        return CollectiveExchange(
            ranks.tower_group,
            ranks.device,
            via_host=link == "host",
            collects=ranks.replica == 0,
            notice=ranks.notice,
            wire=wire,
        )
    pin = any(device.type == "cuda" for device in placement.devices)
    kind: type[LocalExchange] = LocalExchange
    if placement.whole:
        kind = UndividedExchange
    elif len(set(placement.devices)) == 1:
        kind = SharedDeviceExchange
    return kind(placement.devices, pin, link, wire)
