"""Gradients of replicas in separate processes: DistributedDataParallel, which here sums and keeps a ledger."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from splitnet.network.architecture import Transfer
from splitnet.network.towers import SplitNet
from splitnet.parallel.audit import UnknownCopyError
from splitnet.parallel.exchange import Ledger
from splitnet.parallel.ranks import Ranks
from splitnet.parallel.replicas import GRADIENTS, summed_bytes


def replicated(net: SplitNet, ranks: Ranks | None, ledger: Ledger | None = None) -> nn.Module:
    """What to call in the place of a network that has replicas, so that backward leaves the sum over all of them.

    A sum, because each replica's loss is its part of the mean over the global batch. What the all-reduce carries is
    entered in `ledger` as an even share for each replica: 2 (R - 1) / R of the gradients' bytes, sent to the next.
    """
    if ranks is None or ranks.replicas == 1:
        return net
    # all replicas start from the same weights; gradients live in the buckets, not beside them
    model = DistributedDataParallel(net, process_group=ranks.replica_group, gradient_as_bucket_view=True)
    model.register_comm_hook(_Summed(ranks, ledger or Ledger()), _Summed.begin)
    return model


def check(parameters: int, replicas: int, steps: int, measured: int) -> None:
    """UnknownCopyError unless the all-reduces of `steps` steps carried `measured` bytes in all, of float32."""
    expected = summed_bytes(parameters, replicas) * steps
    if measured != expected:
        raise UnknownCopyError(f"gradients: {measured:,} bytes were exchanged, {expected:,} are derived")


class _Summed:
    """The all-reduce of one bucket after another."""

    def __init__(self, ranks: Ranks, ledger: Ledger) -> None:
        self.ranks, self.ledger = ranks, ledger

    @staticmethod
    def begin(state: "_Summed", bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """Start the sum over the replicas; the future has it."""
        buffer, ranks = bucket.buffer(), state.ranks
        if ranks.notice is not None:
            ranks.notice("all_reduce of gradients")
        size = summed_bytes(buffer.numel(), ranks.replicas, buffer.element_size())
        sent = size // ranks.replicas + (ranks.replica < size % ranks.replicas)
        following = (ranks.replica + 1) % ranks.replicas
        state.ledger.record(Transfer(GRADIENTS, "backward", ranks.replica, following, sent))
        work: Any = dist.all_reduce(buffer, group=ranks.replica_group, async_op=True)
        summed: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return summed
