"""Precision, compilation and the order of relu and pool: how rows compute, not what."""

import gc
import shutil
import subprocess
import sys
import sysconfig
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from layouts import batch, relative, run, small

import splitnet
from splitnet.errors import UsageError
from splitnet.network.execution import Execution
from splitnet.network.layers import Block, in_order
from splitnet.parallel import fake
from splitnet.parallel.capabilities import check_execution, is_slow, use_precision
from splitnet.parallel.placement import build
from splitnet.training.loop import network_images

fake.install(2)
CPU = [torch.device("cpu")]


@pytest.mark.parametrize(
    ("execution", "itemsize"),
    [
        (Execution(), 4),
        (Execution("tf32"), 4),
        (Execution("bf16"), 2),
        (Execution(wire="float16"), 2),
        (Execution("bf16", wire="float32"), 4),
        (Execution("bf16", wire="bf16"), 2),
    ],
)
def test_bytes_of_a_number_that_crosses(execution, itemsize):
    assert execution.itemsize == itemsize


def observed(net, images):
    """dtypes of what each row reads and makes."""
    seen = {}

    def note(block, xs, y):
        seen[block.row.name] = (xs[0].dtype, y.dtype)

    for block in net.hosted[0].values():
        block.register_forward_hook(note)
    logits = net(images)
    return seen, logits


def test_bf16_casts_in_the_rows_and_nowhere_else():
    table = small("alexnet")
    net = build(table, devices=["cpu"], precision="bf16")
    images, labels = batch(table)
    seen, logits = observed(net, images.float())
    assert {dtype for pair in list(seen.values())[1:] for dtype in pair} == {torch.bfloat16}
    assert seen["conv1"] == (torch.float32, torch.bfloat16)
    assert logits.dtype == torch.float32  # the loss is float32
    F.cross_entropy(logits, labels).backward()
    assert {p.dtype for p in net.parameters()} == {p.grad.dtype for p in net.parameters()} == {torch.float32}


def test_images_are_made_in_the_dtype_that_the_first_row_computes_in():
    table = small("fashion")
    images = torch.zeros(2, 1, 96, 96, dtype=torch.uint8)
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        [x] = network_images(build(table, devices=["cpu"], precision=precision), images)
        assert x.dtype == dtype


def test_bf16_is_near_float32():
    for name in ("fashion", "alexnet"):
        table = small(name)
        expected, gradients, _ = run(table, ["cpu"], torch.float32)
        net = build(table, devices=["fake:0", "fake:1"], precision="bf16")
        images, labels = batch(table)
        logits = net(images.float())
        F.cross_entropy(logits, labels.to("fake:0")).backward()
        assert 0 < relative(logits.detach().cpu(), expected) < 0.02
        last = net.hosted[0]["fc8"].weight.grad.cpu()
        assert 0 < relative(last, gradients["fc8.weight"]) < 0.05


def test_norms_of_bf16_activations_are_computed_in_float32():
    """At order 1000 a square has no place in 8 bits beside its neighbours'."""
    table = small("alexnet-paper")
    net = build(table, devices=["cpu"], precision="bf16")
    x = (1000 * torch.randn(2, 12, 9, 9)).to(torch.bfloat16)
    block = net.hosted[0]["conv1"]
    exact = block.normalise(x.double())
    assert relative(block.normalise(x).double(), exact) < 2**-8


# relu and pool


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (("relu", "pool"), ("pool", "relu")),
        (("relu", "norm", "pool"), ("relu", "norm", "pool")),
        (("relu", "pool", "dropout"), ("pool", "relu", "dropout")),
        (("sigmoid", "pool"), ("sigmoid", "pool")),
        ((), ()),
    ],
)
def test_a_relu_in_front_of_a_pool_comes_behind_it(after, expected):
    assert in_order(after) == expected


def test_relu_and_pool_commute_to_the_bit_backward_included():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 13, 13).round(decimals=1)  # with equal values, and zeros
    x[0, 0] = -x[0, 0].abs()
    results = []
    for order in (("relu", "pool"), ("pool", "relu")):
        leaf = x.clone().requires_grad_()
        y = leaf
        for op in order:
            y = F.relu(y) if op == "relu" else F.max_pool2d(y, 3, 2)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
        results.append((y.detach(), leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# What devices can do


@pytest.mark.parametrize(
    ("execution", "device", "message"),
    [
        (Execution("tf32"), "cpu", "--precision tf32: cpu has no tf32"),
        (Execution("tf32"), "fake:1", "--precision tf32: fake:1 has no tf32"),
        (Execution("int8"), "cpu", "--precision int8: there are float32, tf32, bf16"),
        (Execution(wire="int8"), "cpu", "--wire int8: there are float32, float16, bf16"),
        (Execution(compiled=True), "fake:0", "--compile: fake:0 computes operation by operation"),
    ],
)
def test_what_a_device_lacks_is_refused(execution, device, message):
    with pytest.raises(UsageError, match=message):
        check_execution(execution, [torch.device(device)])


def test_gradients_of_more_than_two_towers_are_not_summed_in_what_is_cast_for_the_wire():
    """Between processes, where what crosses is summed on its way; `build` refuses it as `run` does."""
    ranks = SimpleNamespace(towers=4)
    with pytest.raises(UsageError, match="--wire float16: between processes gradients of more than two towers"):
        check_execution(Execution(wire="float16"), CPU, ranks)
    check_execution(Execution(wire="float16"), CPU, SimpleNamespace(towers=2))
    check_execution(Execution(overlap=True), CPU, ranks)


def test_build_refuses_too():
    with pytest.raises(UsageError, match="--precision tf32: cpu"):
        splitnet.build(small("fashion"), devices=["cpu"], precision="tf32")


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_cuda_has_them_from_ampere_on(monkeypatch, capability, refused, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if refused:
        with pytest.raises(UsageError, match=f"--precision {precision}: cuda:0 has no {precision}"):
            check_execution(Execution(precision), [torch.device("cuda:0")])
    else:
        check_execution(Execution(precision), [torch.device("cuda:0")])


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    if shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists():
        check_execution(Execution(compiled=True), CPU)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(UsageError, match=r"--compile: on the CPU torch.compile needs a C\+\+ compiler"):
        check_execution(Execution(compiled=True), CPU)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "c++")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(UsageError, match=r"--compile: on the CPU torch.compile needs Python's headers"):
        check_execution(Execution(compiled=True), CPU)
    monkeypatch.setattr("splitnet.parallel.capabilities.has_triton", lambda device: False)
    with pytest.raises(UsageError, match="--compile: cuda:0 needs the package triton"):
        check_execution(Execution(compiled=True), [torch.device("cuda:0")])


def test_the_process_setting_for_tf32_follows_the_network():
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    use_precision(Execution("tf32"))
    assert products.allow_tf32
    assert convolutions.allow_tf32
    build(small("fashion"), devices=["cpu"])
    assert not products.allow_tf32
    assert not convolutions.allow_tf32


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bf16_with_instructions_for_it_is_not_slow(monkeypatch, name):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert not is_slow("bf16", torch.device("cpu"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert is_slow("bf16", torch.device("cpu"))  # nothing uses them


def test_bf16_without_instructions_for_it_is_slow(monkeypatch):
    """With avx512 alone oneDNN computes it, a quarter as fast as float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    assert is_slow("bf16", torch.device("cpu"))
    assert is_slow("bf16", torch.device("fake:0"))
    assert not is_slow("bf16", torch.device("cuda:0"))
    assert not is_slow("float32", torch.device("cpu"))


# Compilation

COMPILED = """
import sys
sys.path.insert(0, "tests")
from dataclasses import replace
import torch
import torch.nn.functional as F
from layouts import batch, relative
from splitnet.network.layers import Moment
from splitnet.network.presets import preset
from splitnet.parallel.placement import build
import torch._dynamo.utils

torch.set_num_threads(1)
table = preset("alexnet", 2)
kinds = ("conv1", "conv2", "conv3", "fc6", "fc8")  # one of each: compiling is what takes the time
table = replace(table, layers=tuple(layer for layer in table.layers if layer.name in kinds)).scaled(1 / 8, size=64)
table = table.adapted(classes=10)
images, labels = batch(table)
found = {}
for how in ({}, {"compile": True}, {"compile": True, "overlap": True}):
    torch._dynamo.utils.counters.clear()
    net = build(table, devices=["cpu", "cpu"], **how).double()
    for step in range(3):
        net.moment = Moment(0, step)
        net.zero_grad()
        logits = net(images)
        F.cross_entropy(logits, labels).backward()
    found[str(how)] = [logits.detach(), *(p.grad for p in net.parameters())]
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # five rows of tower 0, four of tower 1, once for all steps; with overlap nothing follows fc8's product
    assert compiled == {0: 0, 1: 9, 2: 8}[len(how)], compiled
    assert not torch._dynamo.utils.counters["graph_break"], torch._dynamo.utils.counters["graph_break"]
plain, *others = found.values()
for other in others:
    assert max(relative(a, b) for a, b in zip(other, plain)) < 1e-12
print("equal")
"""


@pytest.mark.slow
def test_compiled_rows_compute_the_same_and_are_compiled_once():
    ended = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=600)
    assert ended.stdout.endswith("equal\n"), ended.stderr[-3000:]


def test_a_block_is_compiled_only_where_asked():
    net = build(small("fashion"), devices=["cpu"])
    assert net.hosted[0]["conv1"].compute is Block._compute


def test_a_compiled_network_is_freed_when_nobody_holds_it():
    """Without the collector: layouts of a comparison are dropped to make room for others."""
    gc.disable()
    try:
        net = build(small("fashion"), devices=["cpu"], compile=True)
        weight = weakref.ref(net.hosted[0]["conv1"].weight)
        del net
        assert weight() is None
    finally:
        gc.enable()
