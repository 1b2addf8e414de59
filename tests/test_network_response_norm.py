"""The response norms' operators against the formulas, PyTorch's own norm and a sum written out."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quick import quick

from splitnet.network import response_norm as module
from splitnet.network.architecture import Norm
from splitnet.network.presets import PRESETS
from splitnet.network.response_norm import (
    reference_response_norm,
    reference_spatial_response_norm,
    response_norm,
    spatial_response_norm,
)
from splitnet.parallel import fake

ROOT = Path(__file__).parents[1]
NORM, CNORM = PRESETS["alexnet"].norm, PRESETS["alexnet"].cnorm
KINDS = {  # name: the operator, the formula, a norm that shows in activations of order 1
    "channels": (response_norm, reference_response_norm, Norm(5, alpha=0.5, beta=0.75, k=2.0)),
    "places": (spatial_response_norm, reference_spatial_response_norm, Norm(5, alpha=2.0, beta=0.75, k=1.0)),
}
LAYOUTS = (torch.channels_last, torch.contiguous_format)
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}
OPERATORS = torch.ops.splitnet
kinds = pytest.mark.parametrize("kind", KINDS)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["channels_last", "contiguous"])


def maps(*shape, dtype=torch.float64, layout=torch.channels_last, device="cpu"):
    return torch.randn(*(shape or (2, 12, 5, 6)), dtype=dtype).contiguous(memory_format=layout).to(device)


def both_ways(function, x, grad):
    """The result, and the gradient of x."""
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), *torch.autograd.grad(y, x, grad)


def far(found, expected):
    """Distance relative to the norm of what is expected; both may be zero."""
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def as_arguments(norm, towers=None):
    return norm.size, norm.alpha, norm.beta, norm.k, *([] if towers is None else [towers])


@settings(max_examples=40)
@given(
    kind=st.sampled_from([*KINDS]),
    dtype=st.sampled_from([*BOUNDS]),
    layout=st.sampled_from(LAYOUTS),
    shape=st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    towers=st.integers(1, 3),
    size=st.integers(1, 8),
    beta=st.sampled_from([0.75, 0.5, 1.0]),
    block=st.sampled_from([200, 2000, 10**6]),
)
@example("channels", torch.float32, torch.channels_last, (4, 24, 9, 9), 2, 5, 0.75, 3000)
@example("places", torch.float32, torch.channels_last, (4, 24, 9, 9), 1, 5, 0.75, 3000)
def test_results_and_gradients_are_the_formulas(kind, dtype, layout, shape, towers, size, beta, block):
    operator, formula, norm = KINDS[kind]
    norm = Norm(size, norm.alpha, beta, norm.k)
    more = {"towers": towers} if kind == "channels" else {}
    images, channels, *sides = shape
    x, grad = (maps(images, channels * towers, *sides, dtype=dtype, layout=layout) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = both_ways(lambda x: operator(x, norm, **more), x, grad)
    expected = both_ways(lambda x: formula(x, norm, **more), x, grad) if images else (x, grad)
    for ours, theirs in zip(found, expected, strict=True):
        assert far(ours, theirs) < BOUNDS[dtype]


@layouts
@pytest.mark.parametrize("size", [3, 4, 5])
def test_channels_are_pytorchs_own_norm(size, layout):
    x, grad = maps(layout=layout), maps(layout=layout)
    norm = Norm(size, alpha=0.5, beta=0.75, k=2.0)
    found = both_ways(lambda x: response_norm(x, norm), x, grad)
    expected = both_ways(lambda x: F.local_response_norm(x, size, 0.5, 0.75, 2.0), x, grad)
    assert all(far(a, b) < 1e-12 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_sums_written_out(size):
    x = maps(2, 4, 3, 4)
    before, behind = size // 2, (size - 1) // 2
    over_channels, over_places = torch.empty_like(x), torch.empty_like(x)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        near = x[b, max(0, c - before) : c + behind + 1, i, j]
        around = x[b, c, max(0, i - before) : i + behind + 1, max(0, j - before) : j + behind + 1]
        over_channels[b, c, i, j] = x[b, c, i, j] / (2 + 0.5 / size * near.square().sum()) ** 0.75
        over_places[b, c, i, j] = x[b, c, i, j] / (2 + 0.5 / size**2 * around.square().sum()) ** 0.75
    norm = Norm(size, alpha=0.5, beta=0.75, k=2.0)
    assert far(response_norm(x, norm), over_channels) < 1e-14
    assert far(spatial_response_norm(x, norm), over_places) < 1e-14


@kinds
@pytest.mark.parametrize("size", [3, 4])
def test_gradients_are_those_of_differences(kind, size):
    operator, _, norm = KINDS[kind]
    norm = Norm(size, norm.alpha, norm.beta, norm.k)
    assert torch.autograd.gradcheck(lambda x: operator(x, norm), maps(2, 4, 3, 3).requires_grad_(), atol=1e-8)


def test_towers_are_normed_by_themselves():
    x, grad = maps(), maps()
    norm = KINDS["channels"][2]
    found = both_ways(lambda x: response_norm(x, norm, towers=2), x, grad)
    parts = zip(x.chunk(2, 1), grad.chunk(2, 1), strict=True)
    halves = [both_ways(lambda x: response_norm(x, norm), *part) for part in parts]
    joint = both_ways(lambda x: response_norm(x, norm), x, grad)
    for ours, first, second, across in zip(found, *halves, joint, strict=True):
        assert torch.equal(ours, torch.cat([first, second], 1))
        assert far(ours, across) > 1e-3
    differ = (found[0] != joint[0]).flatten(2).any(2).any(0).nonzero().flatten().tolist()
    assert differ == [4, 5, 6, 7]  # only the two channels on each side of the seam


@pytest.mark.parametrize("block", [1000, 30000])
@kinds
def test_blocks_and_threads_do_not_change_a_bit(kind, block, monkeypatch):
    operator, _, norm = KINDS[kind]
    x, grad = maps(16, 32, 14, 14, dtype=torch.float32), maps(16, 32, 14, 14, dtype=torch.float32)
    expected = both_ways(lambda x: operator(x, norm), x, grad)
    torch.set_num_threads(2)
    try:
        on_two = both_ways(lambda x: operator(x, norm), x, grad)
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr(module, "BLOCK", block)
    in_blocks = both_ways(lambda x: operator(x, norm), x, grad)
    for found in (on_two, in_blocks):
        assert all(map(torch.equal, found, expected))


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(kind, dtype):
    operator, formula, norm = KINDS[kind]
    x, grad = maps(dtype=dtype), maps(dtype=dtype)
    found = both_ways(lambda x: operator(x, norm), x, grad)
    expected = both_ways(lambda x: formula(x, norm), x.float(), grad.float())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        slack = torch.finfo(dtype).eps / 2 * theirs.abs() + 1e-5 * theirs.abs().max()  # a rounding, float32's error
        assert ((ours.float() - theirs).abs() <= slack).all()


@kinds
def test_the_memory_format_of_x_is_kept_whatever_the_gradients(kind):
    operator, formula, norm = KINDS[kind]
    wide = maps(2, 12, 10, 9)
    for x in (maps(), maps(layout=LAYOUTS[1]), wide[:, 3:9], wide[:, :, ::2, 1:-1], wide.transpose(0, 1)):
        for grad in (torch.randn_like(x).contiguous(), torch.tensor(1.5).double().expand(x.shape), x.flip(0) + 1):
            found = both_ways(lambda x: operator(x, norm), x, grad)
            expected = both_ways(lambda x: formula(x, norm), x, grad)
            assert all(far(a, b) < 1e-12 for a, b in zip(found, expected, strict=True))
            layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
            assert all(part.is_contiguous(memory_format=layout) for part in found)


@kinds
@layouts
@pytest.mark.parametrize("k", [2.0, 0.0])
def test_what_is_no_number_goes_as_far_as_in_the_formula(kind, layout, k):
    operator, formula, norm = KINDS[kind]
    norm = Norm(3, norm.alpha, norm.beta, k)
    x, grad = maps(3, 12, 9, 9, layout=layout), maps(3, 12, 9, 9, layout=layout)
    x[0, 4, 4, 4], x[1, 11, 8, 8], x[2, 5, 0, 0] = torch.nan, torch.inf, -1e200  # squared more than there is
    x[2, 9:, 5:, 5:] = 0
    found = both_ways(lambda x: operator(x, norm), x, grad)
    expected = both_ways(lambda x: formula(x, norm), x, grad)
    for ours, theirs in zip(found, expected, strict=True):
        assert not theirs.isfinite().all()
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12, equal_nan=True)


@kinds
@pytest.mark.parametrize(("scale", "k"), [(1e15, 2.0), (1e15, 0.0), (1e-13, 0.0)])
def test_large_and_small_numbers_are_the_formulas(kind, scale, k):
    """Whose squares float32 holds, and whose s ** 1.5 it does not."""
    operator, formula, norm = KINDS[kind]
    norm = Norm(5, norm.alpha, norm.beta, k)
    x, grad = scale * (maps(3, 12, 9, 9, dtype=torch.float32).abs() + 0.5), maps(3, 12, 9, 9, dtype=torch.float32)
    found = both_ways(lambda x: operator(x, norm), x, grad)
    expected = both_ways(lambda x: formula(x, norm), x.double(), grad.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.norm() > 0
        assert far(ours.double(), theirs) < 1e-5


@kinds
def test_only_x_is_kept_for_the_backward(kind):
    operator, _, norm = KINDS[kind]
    x, kept = maps().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        operator(x, norm).sum().backward()
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]


@kinds
def test_without_gradients_the_same(kind):
    operator, _, norm = KINDS[kind]
    x = maps().requires_grad_()
    expected = operator(x, norm)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            found = operator(x, norm)
        assert not found.requires_grad
        assert torch.equal(found, expected)


@kinds
def test_a_second_derivative_is_refused(kind):
    operator, _, norm = KINDS[kind]
    x = maps().requires_grad_()
    [grad] = torch.autograd.grad(operator(x, norm).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: response_norm(maps(2, 12, 3, 3), NORM, towers=5), "5 towers do not divide 12 channels"),
        (lambda: response_norm(maps(2, 12, 3, 3), NORM, towers=0), "0 towers do not divide 12 channels"),
        (lambda: response_norm(torch.ones(3, 4), NORM), r"floats of \(B, C, S, S\), not torch.float32 of \(3, 4\)"),
        (lambda: spatial_response_norm(torch.ones(1, 1, 2, 2, dtype=torch.int64), CNORM), "not torch.int64 of"),
        (lambda: spatial_response_norm(maps(), Norm(0, 1.0, 1.0, 1.0)), "a window of at least 1, not 0"),
    ],
)
def test_what_cannot_be_normed_is_refused(call, why):
    with pytest.raises(ValueError, match=why):
        call()


# One operation each way: to a compiler, to a profiler, to a device.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the check itself
@kinds
@pytest.mark.parametrize("layout", quick(LAYOUTS, LAYOUTS[0]), ids=["channels_last", "contiguous"])
def test_pytorchs_own_checks_of_an_operator(kind, layout):
    x, towers = maps(layout=layout), 2 if kind == "channels" else None
    arguments = as_arguments(KINDS[kind][2], towers)
    name = {"channels": "response_norm", "places": "spatial_response_norm"}[kind]
    torch.library.opcheck(getattr(OPERATORS, name), (x.requires_grad_(), *arguments))
    checks = ("test_schema", "test_faketensor")  # it has no gradient, and says so
    backward = getattr(OPERATORS, f"{name}_backward")
    torch.library.opcheck(backward, (maps(), x.detach(), *arguments), test_utils=checks)


@pytest.mark.slow
@kinds
def test_torch_compile_takes_it_whole(kind):
    operator, formula, norm = KINDS[kind]
    compiled = torch.compile(lambda x: F.relu(operator(2 * x, norm)), fullgraph=True, backend="aot_eager")
    x, grad = maps(), maps()
    found = both_ways(compiled, x, grad)
    expected = both_ways(lambda x: F.relu(formula(2 * x, norm)), x, grad)
    assert all(far(a, b) < 1e-12 for a, b in zip(found, expected, strict=True))
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in found)


def test_a_profiler_names_it():
    x = maps().requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        spatial_response_norm(response_norm(x, NORM), CNORM).sum().backward()
    counts = {event.key: event.count for event in profiler.key_averages()}
    for name in ("response_norm", "spatial_response_norm"):
        assert (counts[f"splitnet::{name}"], counts[f"splitnet::{name}_backward"]) == (1, 1)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_fake_device_the_same_bits_in_one_kernel_each_way(kind, dtype):
    fake.install(2)
    operator, _, norm = KINDS[kind]
    x, grad = maps(dtype=dtype), maps(dtype=dtype)
    expected = both_ways(lambda x: operator(x, norm), x, grad)
    there = x.to("fake:0").requires_grad_(), grad.to("fake:0")
    fake.log.start()
    y = operator(there[0], norm)
    forward = [entry["name"] for entry in fake.log.stop() if entry["kind"] == "kernel"]
    fake.log.start()
    [gradient] = torch.autograd.grad(y, *there)
    backward = [entry["name"] for entry in fake.log.stop() if entry["kind"] == "kernel"]
    name = {"channels": "response_norm", "places": "spatial_response_norm"}[kind]
    assert (forward, backward) == ([name], [f"{name}_backward"])
    for found, plain in zip((y.detach(), gradient), expected, strict=True):
        assert str(found.device) == "fake:0"
        assert found.stride() == plain.stride()
        assert torch.equal(found.cpu(), plain)


def test_devices_do_not_mix():
    fake.install(2)
    for here, there in (("fake:0", "fake:1"), ("fake:0", "cpu"), ("cpu", "fake:1")):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            OPERATORS.response_norm_backward(maps(device=here), maps(device=there), *as_arguments(NORM, 1))


# Triton's kernels, on a CPU as far as one can say something of them.

INTERPRETED = """
import sys, torch
from splitnet.network import response_norm as module
from splitnet.network.architecture import Norm

torch.set_num_threads(1)
assert "triton" not in sys.modules  # it is slow to import, and not everywhere
from splitnet.network import response_norm_kernels as kernels
for kernel in (kernels.scale, kernels.gather):
    kernel.rewrite().__annotations__ = kernel.fn.__annotations__  # Triton 3.8's interpreter quotes them twice
torch.manual_seed(0)
last, first = torch.channels_last, torch.contiguous_format
for layout, dtype, size, beta, towers in [
    (last, torch.float64, 5, 0.75, 2), (first, torch.float64, 4, 0.5, 1), (last, torch.float64, 3, 0.75, None),
    (first, torch.float64, 2, 0.5, None), (first, torch.float32, 3, 0.75, 2), (last, torch.float16, 3, 0.75, None),
]:
    norm = Norm(size, alpha=0.5, beta=beta, k=2.0)
    x, grad = (torch.randn(2, 12, 5, 6).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    x, grad = (module._view(tensor, layout, towers) for tensor in (x, grad))
    for gradient in (None, grad):
        found, expected = torch.full_like(x, torch.nan), torch.empty_like(x)
        kernels.launch(x, gradient, found, norm)
        module._blocks(x, gradient, expected, norm)
        far = ((found - expected).norm() / expected.norm()).item()
        assert far < {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3}[dtype], (dtype, size, far)
print("equal")
"""
with_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")


@pytest.mark.parametrize(
    ("lacking", "there"),
    [("", True), ("triton", False), ("compiler", False), ("cc alone", False), ("headers", False)],
)
def test_triton_is_taken_where_it_can_build(monkeypatch, tmp_path, lacking, there):
    """By the names that it looks for a compiler by, and with Python's headers: else the norms are blocks."""
    names = {"compiler": (), "cc alone": ("cc",)}.get(lacking, ("gcc",))
    if lacking != "headers":
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(module, "find_spec", lambda name: None if lacking == "triton" else name)
    monkeypatch.setattr(module, "which", lambda name: name if name in names else None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert module.has_triton.__wrapped__(torch.device("cuda:0")) == there


@with_triton
@pytest.mark.slow
def test_tritons_kernels_interpreted_are_the_blocks():
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED]  # of overflows in its NumPy, where a mask is false
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.gpu
@kinds
@layouts
@pytest.mark.parametrize("dtype", [*BOUNDS, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize("kernels", [pytest.param("triton", marks=with_triton), "blocks"])
def test_a_gpu_computes_the_formulas_and_the_same_bits_twice(kind, layout, dtype, beta, kernels, monkeypatch):
    if kernels == "triton" and not module.has_triton(torch.device("cuda", 0)):
        pytest.skip("Triton cannot build kernels for this GPU here: no compiler, no Python.h, or an older GPU")
    monkeypatch.setattr(module, "has_triton", lambda device: kernels == "triton")
    operator, formula, norm = KINDS[kind]
    norm = Norm(norm.size, norm.alpha, beta, norm.k)
    x, grad = (maps(3, 24, 13, 11, dtype=dtype, layout=layout, device="cuda") for _ in range(2))
    torch.use_deterministic_algorithms(True)
    try:
        found, again = (both_ways(lambda x: operator(x, norm), x, grad) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    expected = both_ways(lambda x: formula(x, norm), x.double().cpu(), grad.double().cpu())
    for ours, same, theirs in zip(found, again, expected, strict=True):
        assert torch.equal(ours, same)
        assert ours.is_contiguous(memory_format=layout)
        assert far(ours.double().cpu(), theirs) < BOUNDS.get(dtype, 4e-3)


@pytest.mark.two_gpus
def test_kernels_start_on_the_gpu_of_their_tensors():
    x = maps()
    assert far(response_norm(x.to("cuda:1"), NORM).cpu(), response_norm(x, NORM)) < 1e-12
