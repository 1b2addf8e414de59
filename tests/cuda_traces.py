"""Hand-written traces as torch.profiler of torch 2 writes them on CUDA, with figures that are known.

`two_gpus`: one process, two steps of 1,000 and 2,000 us in which the same happens; in front of conv3 all that a
crossing can be. `nccl`: a process for each of two GPUs. `gloo`: two processes on CPUs.
"""

from typing import Any

HOST, AUTOGRAD = 900, (901, 902)
"""The process, also its main thread; autograd's thread for each device."""

BEGUN, LENGTHS = 10_000, (1000, 2000)
BYTES = 8 * 128 * 13 * 13
"""Numbers that each NCCL rank puts in."""


class Writer:
    """Events of one trace; times count from `at`."""

    def __init__(self, process: int = HOST) -> None:
        self.events: list[dict[str, Any]] = []
        self.process, self.at, self.id = process, 0.0, 0

    def add(self, cat: str, name: str, pid: int, tid: int, start: float, end: float, **args: Any) -> None:
        times = {"ts": self.at + start, "dur": end - start}
        self.events.append({"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid} | times | {"args": args})

    def cpu(self, name: str, start: float, end: float, thread: int = HOST, cat: str = "cpu_op", **args: Any) -> None:
        self.id += 1
        known = {key.replace("_", " "): value for key, value in args.items()}
        self.add(cat, name, self.process, thread, start, end, **{"External id": self.id} | known)

    def span(self, name: str, start: float, end: float) -> None:
        self.cpu(name, start, end, cat="user_annotation")

    def launch(self, at: float, cat: str, name: str, device: int, start: float, end: float, **args: Any) -> None:
        """The work of the operation written last, asked for at `at`."""
        ids = {"External id": self.id, "correlation": 10 * len(self.events)}
        thread = self.events[-1]["tid"] if self.events[-1]["cat"] == "cpu_op" else self.thread
        self.thread = thread
        self.add("cuda_runtime", "cudaLaunchKernel", self.process, thread, at, at + 2, cbid=211, **ids)
        stream = 7 if cat != "gpu_memcpy" else 20
        self.add(cat, name, device, stream, start, end, device=device, stream=stream, context=1, **ids | args)

    def trace(self, **head: Any) -> dict[str, Any]:
        devices = [{"id": n, "name": "a GPU", "totalGlobalMem": 2**33} for n in (0, 1)]
        return {"schemaVersion": 1, "traceEvents": self.events, "deviceProperties": devices, **head}


INTO, OUT = "Memcpy HtoD (Pinned -> Device)", "Memcpy DtoH (Device -> Pageable)"
PEER = "Memcpy PtoP (Device -> Device)"


def two_gpus() -> dict[str, Any]:
    write = Writer()
    write.at = BEGUN
    for number, length in enumerate(LENGTHS):
        write.span(f"ProfilerStep#{number + 2}", 0, length)
        _forward(write, 100 * number)
        _backward(write, 100 * number)
        write.span("splitnet.optimizer", 700, 900)
        write.cpu("aten::_foreach_add_", 710, 740)
        write.launch(715, "kernel", "multi_tensor_apply_kernel", 0, 750, 850)
        write.launch(720, "gpu_memset", "Memset (Device)", 0, 850, 860)
        write.cpu("aten::copy_", 910, 930)
        write.launch(915, "gpu_memcpy", OUT, 0, 870, 880, bytes=8)
        write.at += length
    return write.trace()


def _forward(write: Writer, count: int) -> None:
    """`count` is added to autograd's numbers."""
    write.span("splitnet.data", 0, 50)
    write.cpu("aten::copy_", 2, 40, Sequence_number=count + 10)  # makes no node: the number is the next one's
    for device in (0, 1):
        write.launch(5 + 5 * device, "gpu_memcpy", INTO, device, 20, 60, bytes=4000)
    write.span("splitnet.forward", 50, 400)
    write.span("splitnet.row.conv2", 60, 100)
    write.cpu("aten::conv2d", 60, 95, Sequence_number=count + 10)
    write.launch(70, "kernel", "implicit_gemm", 0, 50, 250)
    write.launch(80, "kernel", "implicit_gemm", 1, 60, 160)
    write.cpu("aten::detach", 96, 99, Sequence_number=count + 11)  # nor does this, in the row before
    write.span("splitnet.row.conv3", 110, 300)
    write.span("splitnet.exchange.conv3", 120, 180)
    write.cpu("_Send", 120, 140, Sequence_number=count + 11)
    write.cpu("aten::copy_", 125, 139)
    write.launch(130, "gpu_memcpy", PEER, 0, 200, 300, bytes=8192, fromDevice=0, inDevice=0, toDevice=1)
    write.cpu("_Send", 150, 170, Sequence_number=count + 12)
    write.cpu("aten::copy_", 155, 169)
    write.launch(157, "gpu_memcpy", OUT, 1, 300, 340, bytes=512)
    write.launch(162, "gpu_memcpy", INTO, 0, 340, 390, bytes=512)
    write.cpu("aten::detach", 172, 175, Sequence_number=count + 13)  # makes no node either
    write.cpu("aten::conv2d", 200, 240, Sequence_number=count + 13)
    write.launch(210, "kernel", "implicit_gemm", 0, 400, 500)
    write.launch(220, "kernel", "implicit_gemm", 1, 400, 450)


def _backward(write: Writer, count: int) -> None:
    write.span("splitnet.backward", 400, 700)
    first, second = AUTOGRAD
    write.cpu("ConvolutionBackward0", 410, 440, first, Sequence_number=count + 13)
    write.launch(420, "kernel", "dgrad", 0, 510, 610)
    write.cpu("_SendBackward", 450, 470, first, Sequence_number=count + 12)
    write.cpu("aten::copy_", 452, 469, first, Input_Dims=[[4, 4, 4, 4]] * 2, Input_type=["float", "float"])
    write.launch(455, "kernel", "elementwise_kernel<direct_copy_kernel_cuda>", 0, 610, 640)
    write.cpu("_SendBackward", 450, 480, second, Sequence_number=count + 11)
    write.cpu("aten::copy_", 452, 479, second)
    write.launch(455, "gpu_memcpy", OUT, 1, 620, 650, bytes=8192)
    write.launch(465, "gpu_memcpy", INTO, 0, 650, 700, bytes=8192)
    write.cpu("ConvolutionBackward0", 490, 520, second, Sequence_number=count + 10)
    write.launch(500, "kernel", "dgrad", 1, 650, 750)
    write.cpu("torch::autograd::AccumulateGrad", 530, 540, first)
    write.launch(532, "kernel", "add", 0, 700, 710)


def nccl(rank: int) -> dict[str, Any]:
    """Three steps of 10 ms: 3,000 us of computing, 2,000 of communication (rank 1 arrives 500 later), 1,000 of both."""
    write = Writer()
    for number in range(3):
        write.at = 1_000_000 + 10_000 * number
        write.span(f"ProfilerStep#{number + 2}", 0, 9990)
        write.span("splitnet.forward", 50, 800)
        write.cpu("aten::conv2d", 100, 300)
        write.launch(150, "kernel", "implicit_gemm", rank, 400, 3400)
        write.span("splitnet.exchange.conv3", 490, 700)
        write.span("nccl:_all_gather_base", 500, 600)
        write.cpu("record_param_comms", 510, 590)
        collective = {"Collective name": "_allgather_base", "In msg nelems": BYTES, "dtype": "Float", "Group size": 2}
        kernel = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
        write.launch(530, "kernel", kernel, rank, 2900 if rank else 2400, 4400, **collective)
    return write.trace(distributedInfo={"backend": "nccl", "rank": rank, "world_size": 2})


def gloo(rank: int) -> dict[str, Any]:
    """One step of 1,000 us: 340 of computing, 200 of communication, 50 of both."""
    write = Writer()
    write.span("ProfilerStep#0", 0, 1000)
    write.span("splitnet.forward", 50, 470)
    write.cpu("aten::linear", 100, 300)
    write.cpu("aten::addmm", 110, 290)
    write.span("splitnet.row.fc8", 235, 465)
    write.span("splitnet.exchange.fc8", 240, 460)
    dims = {"Input_Dims": [[4, 8]], "Input_type": ["float"]}
    write.cpu("gloo:all_gather", 250, 450, HOST + 1, "user_annotation", **dims)
    write.span("splitnet.backward", 480, 800)
    write.cpu("AddmmBackward0", 500, 700)
    write.cpu("aten::mm", 510, 600)
    write.cpu("aten::mm", 600, 650)
    return write.trace(distributedInfo={"backend": "gloo", "rank": rank, "world_size": 2})
