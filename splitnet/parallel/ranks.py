"""The processes of a job: which tower of which replica each hosts, and the groups in which they speak.

Started by torchrun, or by whatever else sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # torch.distributed's stubs hide them
from torch.distributed.device_mesh import DeviceMesh

from splitnet.errors import UsageError
from splitnet.parallel.collective import Notice, carried
from splitnet.parallel.meeting import Meeting

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = ("RANK", "WORLD_SIZE", "MASTER_PORT")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""By device. Beside NCCL there is gloo, for numbers that are on the CPU anyway."""


def launched() -> bool:
    """Whether this process is one of a job's."""
    return all(name in os.environ for name in VARIABLES) and all(os.environ[name].isdigit() for name in NUMBERS)


def rank() -> int:
    return int(os.environ["RANK"])


def world() -> int:
    return int(os.environ["WORLD_SIZE"])


def check_divides(towers: int) -> None:
    """UsageError unless the processes of the job are a multiple of the towers."""
    if world() % towers:
        raise UsageError(f"--towers {towers}: {world()} processes are not a multiple of it (torchrun --nproc-per-node)")


def own_gpu() -> bool:
    """Whether this host has a GPU for each of its processes."""
    return torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", world()))


def device(gpus: Sequence[bool]) -> tuple[torch.device, str]:
    """The device of this process, and why, given for each process of the job whether it has a GPU of its own."""
    if all(gpus):
        local = int(os.environ.get("LOCAL_RANK", rank()))
        return torch.device("cuda", local), "each with its own GPU, NCCL"
    return torch.device("cpu"), "not a GPU for each of them: on the CPU, gloo"


def job_store(timeout: float = 60) -> Store:
    """A new connection to what joins the processes of a job; keys are those of this attempt, if torchrun restarts it.

    torchrun's agent has the store; started by anything else, rank 0 opens it. ConnectionError if it does not answer.
    """
    return PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", _connected(timeout))


def wait_for_first(what: str) -> None:
    """Rank 0 says that this is done; the others wait until it has, however long it takes.

    For what may take longer than a collective is waited for. A watch ends those who wait if rank 0 is lost.
    """
    store = _own_connection()
    if rank() == 0:
        store.set(f"done/{what}", "")
    else:
        store.wait([f"done/{what}"], timedelta(days=1))


@cache
def _own_connection() -> Store:
    """For waiting: whoever else used it would wait as well."""
    return job_store()


def remember(name: str, value: str) -> None:
    """Leave a word for the next attempt, should torchrun restart the job."""
    _connected().set(f"remembered/{name}", value)


def recall(name: str) -> str | None:
    """What an earlier attempt has left."""
    store = _connected()
    return store.get(f"remembered/{name}").decode() if store.check([f"remembered/{name}"]) else None


def _connected(timeout: float = 60) -> Store:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    opens = rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not _opened
    try:
        store = TCPStore(address, port, is_master=opens, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(f"the job's store at {address}:{port} does not answer: {reason}") from error
    if opens:
        _opened.append(store)  # it lives as long as this process
    return store


_opened: list[Store] = []


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """One process among the others: rank = replica * towers + tower."""

    rank: int
    world: int
    device: torch.device
    reason: str
    """Why this device."""
    mesh: DeviceMesh
    """(replicas, towers)."""
    notice: Notice | None = None
    """Told of every collective before it begins."""

    def as_replicas(self) -> "Ranks":
        """The same processes, each with the whole network: towers of one."""
        backend = BACKENDS[self.device.type]
        alone = dist.new_group([self.rank], backend=backend, use_local_synchronization=True)
        own: Any = [dist.group.WORLD, alone]
        grid, names = torch.arange(self.world).view(-1, 1), ("replica", "tower")
        mesh = DeviceMesh.from_group(own, self.device.type, mesh=grid, mesh_dim_names=names)
        return replace(self, mesh=mesh)

    @property
    def tower(self) -> int:
        return int(self.mesh.get_local_rank("tower"))

    @property
    def replica(self) -> int:
        return int(self.mesh.get_local_rank("replica"))

    @property
    def towers(self) -> int:
        return int(self.mesh.size(1))

    @property
    def replicas(self) -> int:
        return int(self.mesh.size(0))

    @property
    def tower_group(self) -> dist.ProcessGroup:
        """The towers of this replica."""
        return self.mesh.get_group("tower")

    @property
    def replica_group(self) -> dist.ProcessGroup:
        """The copies of this tower."""
        return self.mesh.get_group("replica")

    def numbers(self, own: Sequence[float], what: str) -> list[list[float]]:
        """Every rank's numbers, in the order of ranks; `what` says in an error what was under way."""
        sent = torch.tensor(own, dtype=torch.float64)
        parts = [torch.empty_like(sent) for _ in range(self.world)]
        with carried(what, self.notice):
            dist.all_gather(parts, sent)
        return [part.tolist() for part in parts]

    def objects(self, own: Any, what: str) -> list[Any]:
        """Every rank's object, in the order of ranks."""
        found: list[Any] = [None] * self.world
        with carried(what, self.notice):
            dist.all_gather_object(found, own)
        return found

    def to_first(self, own: Any, what: str) -> list[Any]:
        """Every rank's object on rank 0; none elsewhere."""
        found: list[Any] = [None] * self.world if self.rank == 0 else []
        with carried(what, self.notice):
            dist.gather_object(own, found or None, dst=0)
        return found

    def from_first(self, own: Any, what: str) -> Any:
        """The object of rank 0, on every rank."""
        found = [own]
        with carried(what, self.notice):
            dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return found[0]

    def meet(self, what: str) -> None:
        """Return when every rank has come here."""
        self.numbers([0.0], what)  # a barrier of NCCL's would wait for the GPU as well


_joined: Ranks | None = None


def join(towers: int, gpus: Sequence[bool], store: Store, timeout: float, notice: Notice | None = None) -> Ranks:
    """Form the groups: everybody, the towers of each replica, the replicas of each tower. Once a process.

    `store` joins all processes of the job; a collective that takes longer than `timeout` seconds fails.
    """
    global _joined
    where, reason = device(gpus)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    backend, limit = BACKENDS[where.type], timedelta(seconds=timeout)
    dist.init_process_group(backend, store=store, rank=rank(), world_size=world(), timeout=limit)
    grid = torch.arange(world()).view(-1, towers)
    # init_device_mesh would give its groups PyTorch's own timeout of half an hour
    rows, columns = ([dist.new_group(line.tolist(), limit, backend) for line in lines] for lines in (grid, grid.T))
    replica, tower = divmod(rank(), towers)
    names = ("replica", "tower")
    own: Any = [columns[tower], rows[replica]]
    mesh = DeviceMesh.from_group(own, where.type, mesh=grid, mesh_dim_names=names)
    _joined = Ranks(rank(), world(), where, reason, mesh, notice)
    return _joined


def of_job(towers: int, timeout: float = 60) -> Ranks | None:
    """The groups of the job that this process is one of, formed when first asked for; None for one that is alone.

    UsageError if they were formed for another number of towers, or cannot be.
    """
    if not launched():
        return None
    if _joined is None:
        check_divides(towers)
        if dist.is_initialized():
            raise UsageError("a process group is there already: build the network first, or name its `devices`")
        store = job_store(timeout)
        gpus = Meeting(store, rank(), world(), timeout).agree({"towers": str(towers)}, own_gpu())
        return join(towers, gpus, store, timeout)
    if _joined.towers != towers:
        raise UsageError(f"towers {towers}: this job's processes are in groups of {_joined.towers}")
    return _joined


def leave() -> None:
    """Leave the groups; the process can end."""
    global _joined
    if dist.is_initialized():
        dist.destroy_process_group()
    _joined = None
