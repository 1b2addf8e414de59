"""Where every operation on fake devices arrives, and what those do that are more than one device's work."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from splitnet.parallel.fake import devices, faults, log, memory, mixing, transfer
from splitnet.parallel.fake.devices import HOST, Place
from splitnet.parallel.fake.execute import reshape, run
from splitnet.parallel.fake.operators import describe
from splitnet.parallel.fake.storage import FakeStorage
from splitnet.parallel.fake.tensor import FakeTensor

aten = torch.ops.aten


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func`, an `OpOverload` of which an argument is a fake tensor or the device is a fake one."""
    if memory.early:
        message, *_ = memory.early
        memory.early.clear()
        raise RuntimeError(message)
    if log.entries is not None:
        log.begin()
    handler = _HANDLERS.get(func)
    if handler is not None:
        return handler(*args, **kwargs)
    if describe(func).composite:
        result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    return run(func, args, kwargs)


def _to_copy(x: FakeTensor, *, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    """A copy on another device, or with another dtype or memory format."""
    source = x._index
    target = source if device is None else _target(device)
    if target is None or target == source:
        return run(aten._to_copy.default, (x,), {"device": device, "non_blocking": non_blocking, **kwargs})
    kwargs.pop("pin_memory", None)
    data = aten._to_copy.default(x._data, **kwargs)
    nbytes = data.numel() * transfer.itemsize(source, target, x.dtype, data.dtype, non_blocking=non_blocking)
    target = transfer.send(data, source, target, nbytes, read=_read(x), differentiable=_differentiable(x))
    return data if target == HOST else FakeTensor(data, target)


def _copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Values from one tensor to another, between any two devices."""
    here, there = _home(source), _home(target)
    if here is None or there is None or here == there:
        return run(aten.copy_.default, (target, source, non_blocking), {})
    data, into = _data(source), _data(target)
    nbytes = into.numel() * transfer.itemsize(here, there, source.dtype, target.dtype, non_blocking=non_blocking)
    differentiable = _differentiable(source) or _differentiable(target)
    faulty = faults.any_active()
    arriving = data.to(target.dtype).expand_as(into).clone() if faulty else into.copy_(data)
    arrives = transfer.send(arriving, here, there, nbytes, into=into, read=_read(source), differentiable=differentiable)
    if faulty and arrives == there:
        into.copy_(arriving)
    return target


def _becomes_gradient(func: Any) -> Callable[..., Tensor]:
    """`detach` or `clone`: what autograd does with the gradient that it leaves in `.grad`."""

    def detach(x: FakeTensor, **kwargs: Any) -> Tensor:
        node: Any = torch._C._current_autograd_node()  # None outside of backward
        if node is not None and node.name() == "torch::autograd::AccumulateGrad":
            mixing.check_gradient(node.variable, x)
        return run(func, (x,), kwargs)

    return detach


def _item(x: FakeTensor) -> Any:
    """The value of a tensor with one element, copied to the host."""
    data = x._data.clone() if faults.any_active() else x._data
    transfer.send(data, x._index, HOST, x.dtype.itemsize, read=_read(x))
    return data.item()


def _set_storage(overload: str) -> Callable[..., Tensor]:
    func = getattr(aten.set_, overload)

    def on_storage(x: FakeTensor, storage: torch.UntypedStorage, *args: Any) -> Tensor:
        if not isinstance(storage, FakeStorage) or storage.index != x._index:
            mixing.refuse(describe(func), (x.device, storage.device))
        func(x._data, storage.plain, *args)
        reshape(x)
        return x

    return on_storage


def _equal(x: Tensor, y: Tensor) -> bool:
    """Whether all values are equal, a byte that the host reads."""
    result = run(aten.equal.default, (x, y), {})
    assert isinstance(x, FakeTensor)  # or the line above would have refused
    transfer.count(x._index, HOST, 1)
    return result


def dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """As the CPU computes it; by itself PyTorch would choose, by device, a fused kernel that rounds differently."""
    if p == 0 or not train or x.numel() == 0:
        return x
    if p == 1:
        return x * x.new_zeros(())
    return x * torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)


def _zero_tensor(size: Any, **kwargs: Any) -> Tensor:
    """Zeros in memory: what PyTorch takes for zeros without any cannot be counted."""
    return torch.zeros(size, **kwargs)


def _no_pinning(x: FakeTensor, device: torch.device | None = None) -> NoReturn:
    raise RuntimeError(f"Only dense CPU tensors can be pinned, not tensors on {x.device}")


def _target(device: torch.device) -> Place | None:
    index = devices.index_of(device)
    return HOST if index is None and device.type == "cpu" else index


def _home(x: Tensor) -> Place | None:
    return x._index if isinstance(x, FakeTensor) else _target(x.device)


def _data(x: Tensor) -> Tensor:
    return x._data if isinstance(x, FakeTensor) else x


def _read(x: Tensor) -> Tensor | None:
    return x._data if isinstance(x, FakeTensor) else None


def _differentiable(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


_HANDLERS: dict[Any, Callable[..., Any]] = {
    aten._to_copy.default: _to_copy,
    aten.copy_.default: _copy_,
    aten._local_scalar_dense.default: _item,
    aten.detach.default: _becomes_gradient(aten.detach.default),
    aten.clone.default: _becomes_gradient(aten.clone.default),
    aten.equal.default: _equal,
    aten.set_.source_Storage: _set_storage("source_Storage"),
    aten.set_.source_Storage_storage_offset: _set_storage("source_Storage_storage_offset"),
    aten.dropout.default: dropout,
    aten._efficientzerotensor.default: _zero_tensor,
    aten._pin_memory.default: _no_pinning,
}
