"""Every copy is counted: from where, to where, how many bytes, in which phase, and by which line."""

import functools
import inspect
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splitnet.parallel import fake
from splitnet.parallel.fake import traffic
from splitnet.testing import fake_devices  # noqa: F401

ONE, TWO, HOST = "fake:0", "fake:1", "cpu"

pytestmark = pytest.mark.usefixtures("fake_devices")


def _line() -> int:
    """The caller's line."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def _journeys() -> list[tuple[str, str, int]]:
    return [(copy.source, copy.target, copy.bytes) for copy in fake.copies().elements()]


def _tensor(device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.arange(6).to(dtype).reshape(2, 3).to(device)
    fake.clear_copies()
    return x


def test_a_copy_tells_where_it_was_asked_for() -> None:
    x = _tensor(ONE)
    x.to(TWO)
    line = _line() - 1
    ((copy, times),) = fake.copies().items()
    assert copy == fake.Copy(ONE, TWO, 24, "forward", __file__, line)
    assert times == 1


COPIES: dict[str, tuple[Callable[[Tensor], Any], list[tuple[str, str, int]]]] = {
    "to another": (lambda x: x.to(TWO), [(ONE, TWO, 24)]),
    "to the host": (lambda x: x.to("cpu"), [(ONE, HOST, 24)]),
    "cpu": (lambda x: x.cpu(), [(ONE, HOST, 24)]),
    "tolist": (lambda x: x.tolist(), [(ONE, HOST, 24)]),
    "item": (lambda x: x[1, 1].item(), [(ONE, HOST, 4)]),
    "float": (lambda x: float(x[0, 0]), [(ONE, HOST, 4)]),
    "bool": (lambda x: bool(x[0, 0] > 1), [(ONE, HOST, 1)]),
    "equal": (lambda x: torch.equal(x, x.clone()), [(ONE, HOST, 1)]),
    "format": (lambda x: f"{x[0, 0]:.1f}", [(ONE, HOST, 4)]),
    "numpy": (lambda x: x.numpy(force=True), [(ONE, HOST, 24)]),
    "view": (lambda x: x[0].to(TWO), [(ONE, TWO, 12)]),
    "expanded": (lambda x: x[:1].expand(9, 3).to(TWO), [(ONE, TWO, 108)]),
    "from the host": (lambda x: torch.ones(5).to(TWO), [(HOST, TWO, 20)]),
    "tensor": (lambda x: torch.tensor([1.0, 2.0], device=TWO), [(HOST, TWO, 8)]),
    "like": (lambda x: torch.ones(2).type_as(x), [(HOST, ONE, 8)]),
    "copy_": (lambda x: torch.empty(2, 3, device=TWO).copy_(x), [(ONE, TWO, 24)]),
    "copy_ broadcast": (lambda x: torch.empty(4, 2, 3, device=TWO).copy_(x), [(ONE, TWO, 96)]),
    "copy_ from the host": (lambda x: x.copy_(torch.ones(3)), [(HOST, ONE, 24)]),
    "copy_ to the host": (lambda x: torch.empty(2, 3).copy_(x), [(ONE, HOST, 24)]),
    "set item": (lambda x: x.__setitem__(0, torch.ones(3)), [(HOST, ONE, 12)]),
    "host index": (lambda x: x[torch.tensor([0, 1])], [(HOST, ONE, 16)]),
    "list index": (lambda x: x[[0, 1]], [(HOST, ONE, 16)]),
    "module": (lambda x: nn.Linear(2, 3).to(TWO), [(HOST, TWO, 24), (HOST, TWO, 12)]),
    # a cast happens at the source between devices, and on the host elsewhere
    "cast and move": (lambda x: x.to(TWO, torch.float64), [(ONE, TWO, 48)]),
    "move and narrow": (lambda x: x.to(TWO, torch.float16), [(ONE, TWO, 12)]),
    "host narrows": (lambda x: torch.ones(2).to(ONE, torch.float16), [(HOST, ONE, 4)]),
    "device narrows": (lambda x: torch.ones(2).to(ONE, torch.float16, non_blocking=True), [(HOST, ONE, 8)]),
    "host widens": (lambda x: x.to("cpu", torch.float64), [(ONE, HOST, 24)]),
    "device widens": (lambda x: x.to("cpu", torch.float64, non_blocking=True), [(ONE, HOST, 48)]),
    "copy_ casts": (lambda x: torch.empty(2, 3, dtype=torch.float64, device=TWO).copy_(x), [(ONE, TWO, 48)]),
    # none of these leaves the device, or is anything
    "clone": (lambda x: x.clone(), []),
    "cast": (lambda x: x.double().half().int(), []),
    "same device": (lambda x: x.to(ONE, copy=True), []),
    "copy_ within": (lambda x: torch.empty_like(x).copy_(x), []),
    "contiguous": (lambda x: x.t().contiguous(), []),
    "empty": (lambda x: x[:0].to(TWO), []),
    "number of the host": (lambda x: x + torch.tensor(1.0), []),
    "factories": (lambda x: [torch.zeros(3, device=TWO), x.new_ones(2), torch.zeros_like(x, device=TWO)], []),
    "the host's own": (lambda x: torch.ones(3).to(torch.float64), []),
}


@pytest.mark.parametrize("name", COPIES)
def test_each_copy_is_counted(name: str) -> None:
    copy, journeys = COPIES[name]
    copy(_tensor(ONE))
    assert _journeys() == journeys


def test_alike_copies_are_one_entry() -> None:
    x = _tensor(ONE)
    for _ in range(1000):
        x.to(TWO)
    assert list(fake.copies().values()) == [1000]
    fake.copies().clear()  # what was handed out is the caller's
    assert fake.copies().total() == 1000
    fake.clear_copies()
    assert not fake.copies()


def test_a_copy_back_has_the_line_of_its_forward_copy() -> None:
    x = _tensor(ONE).requires_grad_()
    y = x.to(TWO)
    line = _line() - 1
    z = (y * y).to(HOST)
    (z * 2).sum().backward()
    assert [(c.source, c.target, c.phase) for c in fake.copies() if c.line == line] == [
        (ONE, TWO, "forward"),
        (TWO, ONE, "backward"),
    ]
    assert [(c.source, c.target, c.phase) for c in fake.copies() if c.line == line + 2] == [
        (TWO, HOST, "forward"),
        (HOST, TWO, "backward"),
    ]
    assert {c.file for c in fake.copies()} == {__file__}


def test_a_copy_from_the_host_or_in_place_is_found_as_well() -> None:
    x = torch.ones(3, requires_grad=True)
    y = x.to(ONE)
    line = _line() - 1
    buffer = torch.zeros(3, device=TWO)
    buffer.copy_(y * 2)
    (buffer * 3).sum().backward()
    lines = {(c.source, c.target): c.line for c in fake.copies() if c.phase == "backward"}
    assert lines == {(TWO, ONE): line + 3, (ONE, HOST): line}
    assert x.grad is not None
    assert x.grad.tolist() == [6, 6, 6]


def test_a_copy_written_in_a_backward_is_its_own() -> None:
    class Hop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.to(TWO)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad.to(ONE)

    Hop.apply(_tensor(ONE).requires_grad_()).sum().backward()
    start = inspect.getsourcelines(Hop)[1]
    assert {(c.phase, c.line - start) for c in fake.copies()} == {("forward", 3), ("backward", 7)}


def test_a_copy_made_again_by_a_checkpoint_is_in_backward() -> None:
    x = _tensor(ONE).requires_grad_()
    checkpoint(lambda y: y.to(TWO).exp(), x, use_reentrant=False).sum().backward()
    line = _line() - 1
    assert {(c.source, c.target, c.phase, c.line): n for c, n in fake.copies().items()} == {
        (ONE, TWO, "forward", line): 1,
        (ONE, TWO, "backward", line): 1,
        (TWO, ONE, "backward", line): 1,
    }


def test_backward_of_backward_has_the_forward_copy_s_line() -> None:
    x = _tensor(ONE).requires_grad_()
    y = x.to(TWO)
    line = _line() - 1
    (gradient,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    gradient.sum().backward()
    assert {c.line for c in fake.copies()} == {line}
    assert fake.copies().total() == 4


def test_no_line_of_forward_is_kept_without_a_graph() -> None:
    x = _tensor(ONE).requires_grad_()
    with torch.no_grad():
        x.to(TWO)
    y = (x * 2).to(TWO)
    line = _line() - 1
    y.sum().backward()
    assert [c.line for c in fake.copies() if c.phase == "backward"] == [line]


class Mover(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(TWO)


def test_the_line_is_outside_of_pytorch_and_the_standard_library(tmp_path: Path) -> None:
    x = _tensor(ONE)
    functools.reduce(lambda y, device: y.to(device), [TWO], x)
    nn.Sequential(nn.Identity(), Mover())(x)
    assert {copy.file for copy in fake.copies()} == {__file__}
    fake.clear_copies()
    source = "def move(x):\n    return x.to('fake:1')\n"
    script = tmp_path / "somebody.py"
    script.write_text(source)
    names: dict[str, Any] = {}
    exec(compile(source, str(script), "exec"), names)
    names["move"](x)
    assert [(copy.file, copy.line) for copy in fake.copies()] == [(str(script), 2)]


def test_packages_are_no_standard_library() -> None:
    library = sysconfig.get_paths()["stdlib"]
    assert traffic._classify(f"{library}/contextlib.py")
    assert not traffic._classify(f"{library}/site-packages/somebody/model.py")


def test_a_failed_copy_is_not_counted() -> None:
    x = _tensor(ONE)
    fake.set_capacity(TWO, torch.fake.memory_allocated(TWO) + 8)
    with pytest.raises(torch.OutOfMemoryError):
        x.to(TWO)
    assert not fake.copies()
