"""Refusals of tensors on different devices: CUDA's words, the operation, and the module where it happened."""

import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import torch
from torch import nn

from splitnet.parallel.fake.operators import Operator


def refuse(operator: Operator, devices: Sequence[torch.device]) -> NoReturn:
    """Raise RuntimeError for tensors on `devices`, two different ones."""
    names = " and ".join(map(str, devices))
    node = torch._C._current_autograd_node()
    places = [f"operation {operator.name}"]
    if node is not None:
        places.append(f"backward of {node.name().removesuffix('0').removesuffix('Backward')}")
    module = current_module()
    if module is not None:
        places.append(module)
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{names}! ({', in '.join(places)})"
    )


def current_module() -> str | None:
    """The module whose code runs now: its name within the outermost module that runs, and its class.

    Found on the stack, so that nothing has to be kept while all goes well.
    """
    inner, outer = None, None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        running = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames[:1] else None
        if isinstance(running, nn.Module):
            inner = inner or running
            outer = running
        frame = frame.f_back
    if inner is None or outer is None:
        return None
    name = next((name for name, module in outer.named_modules() if module is inner), "")
    return f"{name} ({type(inner).__name__})" if name else type(inner).__name__
