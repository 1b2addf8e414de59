"""Refusals of tensors on different devices: CUDA's words, the operation, and the module where it happened."""

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from splitnet.parallel.fake.operators import Operator


def refuse(operator: Operator, devices: Sequence[torch.device]) -> NoReturn:
    """Raise RuntimeError for tensors on `devices`, two different ones."""
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{' and '.join(map(str, devices))}! ({operator.name}{_where()})"
    )


def check_gradient(x: Tensor, grad: Tensor) -> None:
    """Raise RuntimeError unless `grad` is where `x` is."""
    if grad.device != x.device:
        raise RuntimeError(
            f"Expected a tensor and its gradient to be on the same device, but found {x.device} and {grad.device}!"
        )


def _where() -> str:
    node: Any = torch._C._current_autograd_node()  # None outside of backward
    if node is not None:
        return f" in backward of {node.name()}"
    module = current_module()
    return f" in {module}" if module else ""


def current_module() -> str | None:
    """The module whose code runs now: its name within the outermost module that runs, and its class.

    Found on the stack, so that nothing has to be kept while all goes well.
    """
    inner: nn.Module | None = None
    outer: nn.Module | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        running = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames[:1] else None
        if isinstance(running, nn.Module):
            inner, outer = (running if inner is None else inner), running
        frame = frame.f_back
    if inner is None or outer is None:
        return None
    name = next((name for name, module in outer.named_modules() if module is inner), "")
    return f"{name} ({type(inner).__name__})" if name else type(inner).__name__
