"""What `speed.py` sets against each other: each contender a process of its own, that makes a step when it is told to.

    python experiments/contenders.py NAME SETTINGS

`speed.py` starts it. It reads a line and answers with one of JSON: "prepare" builds and warms up, "step" makes a step
and tells its seconds, "tensors" makes one more that tells the peak of its tensors. It ends with its standard input, so
that none outlives whoever started it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import splitnet
from splitnet.allocator import keep_freed_memory
from splitnet.network.architecture import Architecture, Row
from splitnet.network.presets import preset
from splitnet.parallel.capabilities import cpu_multiplies_bf16
from splitnet.training.data import Batch
from splitnet.training.loop import training_step
from splitnet.training.optimizer import LEARNING_RATES, MOMENTUM, make_optimizer

WARM_UP = 3
"""Steps before the first measured one: the optimizer's state is there after one, the heap's shape after two."""

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a contender is made."""

    kind: Literal["ours", "plain", "torchvision", "ddp", "products"]
    said: str
    towers: int = 2
    """Of the plain network: groups of its convolutions."""
    devices: tuple[str, ...] = ("cpu",)
    precision: Literal["float32", "bf16"] = "float32"
    keeps: bool = False
    """Whether freed memory is kept, as `splitnet.run` does."""
    processes: int = 1


def _ours(precision: Literal["float32", "bf16"]) -> dict[str, Recipe]:
    of = Recipe(kind="ours", said="", keeps=True, precision=precision)
    end = "" if precision == "float32" else "-bf16"
    return {
        f"ours{end}": replace(of, said=f"ours, two towers on one device, {precision}", devices=("cpu", "cpu")),
        f"ours-whole{end}": replace(of, said=f"ours, the same in one piece, {precision}"),
        f"ours-dense{end}": replace(of, said=f"ours, dense, {precision}", towers=1),
        f"products{end}": replace(of, kind="products", said=f"convolutions and products alone, {precision}"),
        f"products-dense{end}": replace(of, kind="products", said=f"the same, dense, {precision}", towers=1),
    }


CONTENDERS = {
    **_ours("float32"),
    **_ours("bf16"),
    "plain": Recipe(kind="plain", said="plain PyTorch as installed, groups=2"),
    "plain-kept": Recipe(kind="plain", said="the same with our allocator settings", keeps=True),
    "plain-dense": Recipe(kind="plain", said="plain PyTorch as installed, dense", towers=1),
    "plain-dense-kept": Recipe(kind="plain", said="the same with our allocator settings", towers=1, keeps=True),
    "torchvision": Recipe(kind="torchvision", said="torchvision's AlexNet: another network", towers=1),
    "ddp": Recipe(kind="ddp", said="DistributedDataParallel, plain, two processes that share the threads", processes=2),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all contenders share."""

    preset: str
    batch_size: int
    threads: int
    optimizer: str
    rank: int = 0
    store: str = ""
    """A file at which the processes of a contender meet."""


def bf16_lacks() -> str | None:
    """Why bf16 is left out; None where the CPU has it."""
    return None if cpu_multiplies_bf16() else "this CPU has no instructions for bfloat16 (avx512_bf16, amx)"


# Plain PyTorch, as people write it.


def plain_network(table: Architecture) -> nn.Sequential:
    """The table in PyTorch's own modules; convolutions that do not cross have `groups`, norms run over all channels."""
    modules: list[nn.Module] = []
    for row in table.rows():
        if not row.layer.kernel and not any(isinstance(module, nn.Flatten) for module in modules):
            modules.append(nn.Flatten())
        modules += _product(row)
        modules += [_after(table, op) for op in row.layer.after]
    return nn.Sequential(*modules)


def _product(row: Row) -> Iterator[nn.Module]:
    layer = row.layer
    if not layer.kernel:
        yield nn.Linear(row.channels * row.side**2, layer.out)
        return
    before, behind = layer.padding
    if before != behind:
        yield nn.ZeroPad2d((before, behind, before, behind))
        before = 0
    yield nn.Conv2d(row.channels, layer.out, layer.kernel, layer.stride, before, groups=row.groups)


def _after(table: Architecture, op: str) -> nn.Module:
    norm, pool = table.norm, table.pool
    match op:
        case "relu":
            return nn.ReLU(inplace=True)
        case "norm":
            return nn.LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k)
        case "pool":
            return nn.MaxPool2d(pool.kernel, pool.stride, ceil_mode=pool.ceil)
        case "dropout":
            return nn.Dropout(table.dropout)
    raise ValueError(f"{table.name} has {op}, for which PyTorch has no module")


def load_whole(network: nn.Sequential, table: Architecture, state: dict[str, Tensor]) -> None:
    """Give a plain network the weights of a whole state, which has the rows' names."""
    places = [name.removesuffix(".weight") for name in network.state_dict() if name.endswith(".weight")]
    kinds = ("weight", "bias")
    rows = zip(places, table.rows(), strict=True)
    network.load_state_dict({f"{place}.{kind}": state[f"{row.name}.{kind}"] for place, row in rows for kind in kinds})


def plain_optimizer(parameters: Iterator[nn.Parameter], name: str) -> torch.optim.Optimizer:
    """In the form that PyTorch chooses by itself."""
    rate = LEARNING_RATES[name]
    if name == "adam":
        return torch.optim.Adam(parameters, lr=rate)
    return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM)


# A step's products and nothing else.


@dataclass(frozen=True, slots=True)
class Product:
    """A convolution or a matrix product of one row, and what a training step needs of it."""

    name: str
    input: tuple[int, ...]
    """(C, S, S) as the convolution reads it, with padding that is not alike on both sides; or (in,)."""
    weight: tuple[int, ...]
    output: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    input_gradient: bool = True
    """Nobody needs that of the images."""

    @property
    def multiply_adds(self) -> int:
        """For one image: forward, the weights' gradient and the input's are as much each."""
        forward = torch.Size(self.weight).numel() * torch.Size(self.output[1:]).numel()
        return forward * (3 if self.input_gradient else 2)


def products(table: Architecture) -> list[Product]:
    """All that one training step of the table multiplies, in order."""
    return [_product_of(row, first) for first, row in zip([True] + [False] * 99, table.rows(), strict=False)]


def _product_of(row: Row, first: bool) -> Product:
    layer, weight = row.layer, row.weight_shape
    if not layer.kernel:
        return Product(row.name, (row.channels * row.side**2,), weight, (layer.out,), input_gradient=not first)
    before, behind = layer.padding
    side, padding = (row.side, before) if before == behind else (row.side + before + behind, 0)
    _, out = row.outputs[0]
    shapes = (row.channels, side, side), weight, (layer.out, out, out)
    return Product(row.name, *shapes, layer.stride, padding, row.groups, input_gradient=not first)


class Multiplication:
    """A product with tensors to compute it on, in the format and the type that ours computes in."""

    def __init__(self, product: Product, images: int, dtype: torch.dtype) -> None:
        self.of = product
        shapes = (images, *product.input), product.weight, (images, *product.output)
        self.x, self.weight, self.gradient = (_random(shape, dtype) for shape in shapes)
        self.bias = torch.zeros(product.weight[0], dtype=dtype)

    def forward(self) -> None:
        p = self.of
        if len(p.weight) == 2:
            F.linear(self.x, self.weight, self.bias)
        else:
            F.conv2d(self.x, self.weight, self.bias, p.stride, p.padding, groups=p.groups)

    def backward(self) -> None:
        p = self.of
        if len(p.weight) == 2:
            self.gradient.t() @ self.x
            if p.input_gradient:
                self.gradient @ self.weight
            return
        places = [p.stride] * 2, [p.padding] * 2, [1, 1], False, [0, 0], p.groups
        torch.ops.aten.convolution_backward(
            self.gradient, self.x, self.weight, None, *places, [p.input_gradient, True, False]
        )


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tensor = torch.rand(shape).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


# A contender at work.


class Contender:
    """A network with its data, which makes a step when it is asked to; `held` are the tensors that it rests with."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        self.recipe, self.settings = recipe, settings
        table = preset(settings.preset, recipe.towers)
        if recipe.kind == "torchvision":
            table = preset("torchvision", 1)
        self.table, self.images = table, (settings.batch_size + settings.rank) // recipe.processes  # 3: 1 and 2
        generator = torch.Generator().manual_seed(settings.rank)
        shape = (self.images, table.channels, table.size, table.size)
        self.bytes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(0, table.classes, shape[:1], generator=generator)
        if recipe.kind != "ours":
            self.floats = self.bytes / 255  # as a loader hands them out; ours does this in its step

    def prepare(self) -> None:
        """Build it; what was taken before is the baseline of the memory."""
        self.network: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.step: Step = getattr(self, f"_{self.recipe.kind}")()

    def _ours(self) -> Step:
        recipe = self.recipe
        extra: dict[str, Any] = {} if recipe.precision == "float32" else {"precision": recipe.precision}
        network = splitnet.build(self.table, devices=list(recipe.devices), **extra).train()
        self.network = network
        optimizer = self.optimizer = make_optimizer(network.parameters(), self.settings.optimizer)
        batch = Batch(self.bytes, self.labels, torch.arange(self.images))
        return lambda: training_step(network, optimizer, batch)

    def _plain(self) -> Step:
        return self._trains(plain_network(self.table))

    def _torchvision(self) -> Step:
        from torchvision.models import alexnet  # half a second, which only this one needs

        return self._trains(alexnet())

    def _ddp(self) -> Step:
        rank, world = self.settings.rank, self.recipe.processes
        dist.init_process_group("gloo", init_method=f"file://{self.settings.store}", rank=rank, world_size=world)
        return self._trains(nn.parallel.DistributedDataParallel(plain_network(self.table)))

    def _trains(self, network: nn.Module) -> Step:
        self.network = network.train()
        optimizer = self.optimizer = plain_optimizer(network.parameters(), self.settings.optimizer)
        criterion = nn.CrossEntropyLoss()

        def step() -> None:
            optimizer.zero_grad()
            criterion(network(self.floats), self.labels).backward()
            optimizer.step()

        return step

    def _products(self) -> Step:
        dtype = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float32
        work = [Multiplication(product, self.images, dtype) for product in products(self.table)]

        def step() -> None:
            for multiplication in work:
                multiplication.forward()
            for multiplication in reversed(work):
                multiplication.backward()

        return step

    def tensors(self) -> int | None:
        """Bytes of all tensors at the peak of a step, counted where PyTorch allocates; None of what trains nothing."""
        if self.network is None or self.optimizer is None:
            return None
        self.optimizer.zero_grad()  # the counting begins with what is allocated from now on
        state = [t for entry in self.optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
        held = sum(t.numel() * t.element_size() for t in [*self.network.parameters(), *state])
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            self.step()
        results = recorded.profiler.kineto_results if recorded.profiler else None
        events = [event for event in results.events() if event.name() == "[memory]"] if results else []
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        return held + peak


def _resident() -> dict[str, int]:
    """Bytes that this process has in memory, and had at most; {} where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return {}
    kinds = {"VmRSS": "now", "VmHWM": "most"}
    told = (line.partition(":") for line in lines)
    return {kinds[name]: 1024 * int(value.split()[0]) for name, _, value in told if name in kinds}


def _forget_peak() -> None:
    """Let VmHWM begin here (proc(5)); where that is not allowed it is of the process's whole life."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")
    except OSError:
        return


def serve(recipe: Recipe, settings: Settings) -> None:
    """Answer until nobody asks any more."""
    allocator = keep_freed_memory() if recipe.keeps else "as installed"
    torch.set_num_threads(max(1, settings.threads // recipe.processes))
    torch.manual_seed(settings.rank)
    contender = Contender(recipe, settings)
    for line in sys.stdin:
        answer: dict[str, Any] = {}
        match line.strip():
            case "prepare":
                _forget_peak()
                before = _resident()
                contender.prepare()
                for _ in range(WARM_UP):
                    contender.step()
                answer = {"allocator": allocator, "before": before.get("now")}
            case "step":
                start = time.perf_counter()
                contender.step()
                answer = {"seconds": time.perf_counter() - start, "most": _resident().get("most")}
            case "tensors":
                answer = {"tensors": contender.tensors()}
        print(json.dumps(answer | {"computed": time.process_time()}), flush=True)


def command(name: str, settings: Settings) -> list[str]:
    """Words that start a contender."""
    return [sys.executable, __file__, name, json.dumps(asdict(settings))]


def main() -> None:
    name, settings = sys.argv[1:]
    try:
        serve(CONTENDERS[name], Settings(**json.loads(settings)))
    except BrokenPipeError:  # whoever asked is gone
        os._exit(0)
    sys.stdout.flush()
    os._exit(0)  # a process group of two is not taken down in order


if __name__ == "__main__":
    main()
