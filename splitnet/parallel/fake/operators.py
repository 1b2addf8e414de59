"""What there is to know about an operator before it runs; looked up once for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tag

aten = torch.ops.aten

_NO_KERNEL = frozenset({"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"})

# On a GPU, operators built on TensorIterator take 0-dim host tensors as if they were numbers. PyTorch tags
# most of them as pointwise; these are the exceptions in its own table (`device_check` in native_functions.yaml).
_TAKES_SCALARS = frozenset(
    {
        "fill", "masked_fill", "index_fill", "floor_divide", "true_divide", "rsub", "heaviside", "copysign",
        "mse_loss", "smooth_l1_loss", "index_put", "_index_put_impl", "_unsafe_index_put",
    }
)  # fmt: skip
_NO_SCALARS = frozenset(
    {
        "clamp", "clamp_min", "clamp_max", "gcd", "lcm", "logaddexp", "logaddexp2", "igamma", "igammac",
        "nextafter", "equal",
    }
)  # fmt: skip

# Arguments that may be on the host whatever their shape. A GPU copies indices and leaves the others there.
_HOST_ARGUMENTS = {
    "index": {"indices"},
    "index_put": {"indices"},
    "_index_put_impl": {"indices"},
    "_unsafe_index": {"indices"},
    "_unsafe_index_put": {"indices"},
    "_pack_padded_sequence": {"lengths"},
    "_pad_packed_sequence": {"batch_sizes"},
    "_ctc_loss": {"input_lengths", "target_lengths"},
    "_ctc_loss_backward": {"input_lengths", "target_lengths"},
    "_foreach_addcdiv": {"scalars"},
    "_foreach_addcmul": {"scalars"},
}


@dataclass(frozen=True, slots=True)
class Operator:
    """The facts about one overload that decide how a fake device runs it."""

    name: str  # "add"
    run: Callable[..., Any]  # what a call of the overload ends in, without the detour through Python
    arguments: tuple[str, ...]
    composite: bool  # made of other operators; comes here whole only without autograd keys
    places: bool  # takes the device of its result as an argument
    launches: bool  # runs a kernel: not a view, not an allocation
    reads: bool  # looks at its tensors' values: not at their shapes alone
    written: tuple[str, ...]  # arguments that it changes
    reshapes: bool  # may change the shape of what it writes
    takes_scalars: bool  # 0-dim host tensors count as numbers
    host_arguments: frozenset[str]


_known: dict[Any, Operator] = {}


def describe(func: Any) -> Operator:
    """The facts about `func`, an `OpOverload`."""
    try:
        return _known[func]
    except KeyError:
        return _known.setdefault(func, _describe(func))


def _describe(func: Any) -> Operator:
    schema = func._schema
    name = schema.name.partition("::")[2]
    functional = name.removesuffix("_")
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    out = any(a.is_out for a in schema.arguments)
    return Operator(
        name=name,
        run=func._op,
        arguments=tuple(a.name for a in schema.arguments),
        composite=torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"),
        places=any(a.name == "device" for a in schema.arguments),
        launches=not func.is_view and functional not in _NO_KERNEL,
        reads=not functional.endswith("_like") and not functional.startswith("new_"),
        written=written,
        reshapes=out or Tag.inplace_view in func.tags or functional in ("resize", "resize_as", "set"),
        takes_scalars=_takes_scalars(func, functional),
        host_arguments=frozenset(_HOST_ARGUMENTS.get(functional, ())),
    )


def _takes_scalars(func: Any, functional: str) -> bool:
    if functional in _NO_SCALARS or functional.endswith("_backward"):
        return False
    if functional in _TAKES_SCALARS or functional.startswith("_foreach_"):
        return True
    overload = func.overloadpacket
    if functional != overload._qualified_op_name.partition("::")[2]:  # in place: as its functional twin
        overload = getattr(aten, functional, overload)
    return any(Tag.pointwise in getattr(overload, name).tags for name in overload.overloads())
