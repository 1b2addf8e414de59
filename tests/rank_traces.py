"""Hand-written traces of two ranks, with figures that are known: on CPUs with gloo, on GPUs with NCCL.

Rank 1 begins `LATER` after rank 0, and its host's clock is `AHEAD`. Times of an event count from its rank's step.
"""

from typing import Any

from cuda_traces import HOST, Writer, nccl

from splitnet.measure.ranks import RankTrace

BASES = (5_000_000_000_000, 5_000_000_500_000)
"""Nanoseconds that the times of each trace count from, on the clock of its host."""

BEGUN = (1000.0, 850.0)
AHEAD, LATER = 250.0, 100.0
"""Microseconds: 850 + 500 - 250 is 100 more than 1000."""

LENGTH = 2000
SHARE, GRADIENTS = 4 * 8 * 16 * 4 * 4, 4 * 1000
"""Bytes of what a rank sends another in front of conv2, and of what it puts in for its replicas."""

SHAPE = [8, 16, 4, 4]


def cpu(rank: int) -> dict[str, Any]:
    """A step in which rank 1 comes to the first exchange 50 us later than rank 0 by its own step."""
    write = Writer()
    write.at = BEGUN[rank]
    write.span("ProfilerStep#2", 0, LENGTH)
    write.span("splitnet.data", 0, 100)
    write.cpu("aten::randn", 10, 90)
    _forward(write, 350 + 50 * rank)
    _backward(write)
    write.span("splitnet.optimizer", 1750, 1900)
    write.cpu("aten::_foreach_add_", 1760, 1800)
    write.events.append({"ph": "s", "cat": "fwdbwd", "name": "fwdbwd", "id": 7, "pid": HOST, "tid": HOST, "ts": 1010.0})
    for pid, name in [(HOST, "python"), ("Spans", "")]:
        meta = {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "ts": 3.0, "args": {"name": name}}
        write.events.append(meta)
    return write.trace(
        baseTimeNanoseconds=BASES[rank], distributedInfo={"backend": "gloo", "rank": rank, "world_size": 2}
    )


def _forward(write: Writer, comes: int) -> None:
    write.span("splitnet.forward", 100, 1000)
    write.span("splitnet.row.conv1", 100, 300)
    write.cpu("aten::conv2d", 110, 290)
    write.span("splitnet.row.conv2", 300, 900)
    write.span("splitnet.exchange.conv2", 310, 620)
    write.cpu("_AllGather", 312, 618, Sequence_number=5)
    write.cpu("aten::empty_like", 320, 330)
    write.cpu("c10d::allgather_", comes, comes + 20, Input_Dims=[[], [SHAPE], [], []])
    _gloo(write, "all_gather", comes + 10, 560, 1, SHAPE)
    write.cpu("aten::copy_", 540, 550, HOST + 1)  # gloo moves what came
    write.cpu("aten::cat", 600, 615)
    write.cpu("aten::conv2d", 650, 850)


def _backward(write: Writer) -> None:
    """Behind the exchange a bucket of gradients is on its way while backward computes.

    Backward ends when it has come; gloo's thread notes that 50 us later.
    """
    write.span("splitnet.backward", 1000, 1750)
    write.cpu("aten::convolution_backward", 1010, 1210)
    write.cpu("_AllGatherBackward", 1215, 1505, Sequence_number=5)
    write.span("splitnet.exchange.conv2", 1220, 1500)
    write.cpu("aten::chunk", 1225, 1235)
    write.cpu("c10d::reduce_scatter_", 1240, 1280, Input_Dims=[[SHAPE], [], [], []])
    write.cpu("aten::clone", 1250, 1260)
    _gloo(write, "all_reduce", 1250, 1450, 1, SHAPE)
    _gloo(write, "all_reduce", 1260, 1470, 2, SHAPE)
    write.cpu("aten::convolution_backward", 1510, 1610)
    write.cpu("c10d::allreduce_", 1620, 1630, Input_Dims=[[[1000]], [], []])
    _gloo(write, "all_reduce", 1640, 1800, 1, [1000])
    write.cpu("aten::mm", 1650, 1690)


def _gloo(write: Writer, name: str, start: int, end: int, thread: int, shape: list[int]) -> None:
    dims = {"Input_Dims": [shape], "Input_type": ["float"]}
    write.cpu(f"gloo:{name}", start, end, HOST + thread, "user_annotation", **dims)


def cpus() -> list[RankTrace]:
    return [
        RankTrace(rank, rank, 0, f"host-{rank}", HOST, "cpu", cpu(rank), AHEAD * rank, 20.0 * rank) for rank in (0, 1)
    ]


def gpus(device: int | None = None) -> list[RankTrace]:
    """Two ranks on `cuda_traces.nccl`'s kernels; both may call their device by the same number, each on its host."""
    found = []
    for rank in (0, 1):
        trace = nccl(rank)
        number = rank if device is None else device
        for event in trace["traceEvents"]:
            if event["pid"] == rank:
                event |= {"pid": number, "args": event["args"] | {"device": number}}
        found.append(RankTrace(rank, rank, 0, "host", HOST + rank, f"cuda:{number}", trace))
    return found
