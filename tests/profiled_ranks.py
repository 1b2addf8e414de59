"""Two processes that train over gloo, each under the profiler: real traces of ranks for tests.

As two towers: conv, exchange to all, conv, exchange to tower 0, linear. As two replicas: the same in one piece, twice.
"""

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from splitnet import spans
from splitnet.measure import ranks
from splitnet.measure.profiler import Profile
from splitnet.parallel.collective import CollectiveExchange

WORLD = 2
STEPS, BATCH, CHANNELS, SIZE, HIDDEN = 3, 8, 8, 24, 16
GATHERED = 4 * BATCH * CHANNELS * SIZE**2
"""Bytes of a tower's channels in front of conv2."""

LAST = 4 * BATCH * HIDDEN
"""And in front of fc8."""

WEIGHTS = 9 * 3 * CHANNELS + CHANNELS + 9 * CHANNELS * HIDDEN + HIDDEN + 10 * HIDDEN + 10
"""Of the network in one piece."""


class Net(nn.Module):
    def __init__(self, towers, tower):
        super().__init__()
        self.exchange = CollectiveExchange(dist.group.WORLD, torch.device("cpu")) if towers > 1 else None
        self.conv1 = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(CHANNELS * towers, HIDDEN, 3, padding=1)
        if tower == 0:
            self.fc8 = nn.Linear(HIDDEN * towers, 10)

    def forward(self, x):
        with record_function(spans.row("conv1")):
            x = F.relu(self.conv1(x))
        with record_function(spans.row("conv2")):
            with record_function(spans.exchange("conv2")):
                x = self.exchange.all_gather([x], "conv2")[0] if self.exchange else x
            x = F.relu(self.conv2(x))
        with record_function(spans.row("fc8")):
            x = x.mean((2, 3))
            with record_function(spans.exchange("fc8")):
                x = self.exchange.gather([x], "fc8") if self.exchange else x
            return self.fc8(x) if hasattr(self, "fc8") else x


def step(net, optimizer, number):
    with record_function(spans.DATA):
        images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad(set_to_none=True)
    with record_function(spans.FORWARD):
        logits = net(images)
        labels = torch.arange(BATCH) % 10
        loss = F.cross_entropy(logits, labels) if logits.ndim else logits
    with record_function(spans.BACKWARD):
        loss.backward()
    with record_function(spans.OPTIMIZER):
        optimizer.step()


def share(mine):
    """What every rank hands in, on every rank."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def work(rank, port, folders):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    for towers, folder in folders.items():
        profiled(rank, towers, folder)
    dist.destroy_process_group()


def profiled(rank, towers, folder):
    torch.manual_seed(0)
    replica, tower = divmod(rank, towers)
    net = Net(towers, tower)
    if towers == 1:
        net = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Profile([torch.device("cpu")], STEPS + 2) as profile:
        for number in range(STEPS + 2):
            step(net, optimizer, number)
            profile.step()
    clock = ranks.clock_offset(dist.barrier, share, rank)
    every = share(ranks.rank_trace(profile, clock, rank=rank, tower=tower, replica=replica, host="here"))
    if rank == 0:
        ranks.write_ranks(every, Path(folder))


def train(folders):
    """Writes the traces of a run for each number of towers into its folder, which is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, {towers: str(folder) for towers, folder in folders.items()}), nprocs=WORLD)
