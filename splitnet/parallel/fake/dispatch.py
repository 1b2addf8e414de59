"""What an operation on fake devices does: the CPU's operation, on one device, with everything accounted for."""

import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from splitnet.parallel.fake import clocks, devices, faults, memory, mixing, transfer
from splitnet.parallel.fake.devices import HOST, Place
from splitnet.parallel.fake.operators import Operator, describe
from splitnet.parallel.fake.storage import FakeStorage
from splitnet.parallel.fake.tensor import FakeTensor

aten = torch.ops.aten

CPU = torch.device("cpu")


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func`, an `OpOverload` of which an argument is a fake tensor or the device is a fake one."""
    handler = _HANDLERS.get(func)
    if handler is not None:
        return handler(*args, **kwargs)
    operator = describe(func)
    if operator.composite:
        result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    return run(func, operator, args, kwargs)


def run(func: Any, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func` on the CPU data of its arguments, which must be on one device; the result is there too."""
    fakes: list[FakeTensor] = []
    hosts: list[Tensor] = []
    plain_args = [_plain(value, fakes, hosts) for value in args]
    plain_kwargs = {name: _plain(value, fakes, hosts) for name, value in kwargs.items()} if kwargs else {}
    index = _common(operator, fakes)
    if hosts and fakes:
        _check_hosts(operator, args, kwargs, fakes[0])
    target = _place(operator, plain_kwargs, index)

    start = time.perf_counter()
    result = operator.run(*plain_args, **plain_kwargs)
    if operator.launches and index != HOST:
        clocks.compute(index, time.perf_counter() - start)

    if operator.written and fakes:
        owners = {id(fake._data): fake for fake in fakes}
        if operator.reshapes:
            for fake in fakes:
                _reshape(fake)
        return _wrapped(result, target, owners)
    return result if target == HOST else _wrapped(result, target, {})


def _plain(value: Any, fakes: list[FakeTensor], hosts: list[Tensor]) -> Any:
    """`value` with CPU data in place of fake tensors, which are added to `fakes`; other tensors to `hosts`."""
    kind = type(value)
    if kind is FakeTensor:
        fakes.append(value)
        return value._data
    if kind is list or kind is tuple:
        return [_plain(item, fakes, hosts) for item in value]
    if isinstance(value, Tensor):
        hosts.append(value)
    return value


def _common(operator: Operator, fakes: list[FakeTensor]) -> Place:
    """The device that all of `fakes` are on, HOST where there are none."""
    if not fakes:
        return HOST
    index = fakes[0]._index
    for fake in fakes:
        if fake._index != index and operator.name != "is_same_size":
            mixing.refuse(operator, (fakes[0].device, fake.device))
    return index


def _check_hosts(operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], fake: FakeTensor) -> None:
    """Refuse host tensors beside `fake`, except where a GPU takes them; count those that it would copy."""
    if operator.name == "is_same_size":
        return
    for name, value in (*zip(operator.arguments, args, strict=False), *kwargs.items()):
        for host in _host_tensors(value):
            if name in operator.written or host.device != CPU:
                mixing.refuse(operator, (fake.device, host.device))
            if name in operator.host_arguments:
                if name == "indices":
                    transfer.count(HOST, fake._index, host.nbytes)
            elif host.dim() > 0 or not operator.takes_scalars:
                mixing.refuse(operator, (fake.device, host.device))


def _host_tensors(value: Any) -> list[Tensor]:
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, Tensor) and type(item) is not FakeTensor]


def _place(operator: Operator, kwargs: dict[str, Any], index: Place) -> Place:
    """Where the result will be: a fake device or HOST. Puts the CPU in place of a fake device in `kwargs`."""
    if kwargs.get("generator") is not None and (index != HOST or operator.places):
        raise RuntimeError("Expected a 'fake' device type for generator but found 'cpu'")
    device = kwargs.get("device") if operator.places else None
    if device is None:
        return index
    target = devices.index_of(device)
    if target is None:
        return HOST
    if kwargs.get("pin_memory"):
        raise RuntimeError(f"Only dense CPU tensors can be pinned, not tensors on fake:{target}")
    kwargs["device"] = CPU
    return target


def _wrapped(result: Any, index: int, owners: dict[int, FakeTensor]) -> Any:
    """`result` with each tensor on device `index`, and itself again where it was changed in place."""
    if isinstance(result, Tensor):
        owner = owners.get(id(result))
        return FakeTensor(result, index) if owner is None else owner
    if isinstance(result, list | tuple):
        return type(result)(_wrapped(item, index, owners) for item in result)
    return result


def _reshape(fake: FakeTensor) -> None:
    """Follow a change of shape or size in place; undo it where the device is too small for it."""
    data, storage = fake._data, fake._data.untyped_storage()
    block = memory.account(storage, fake._index)
    if block.nbytes != storage.nbytes():
        try:
            block.resize(storage.nbytes())
        except torch.OutOfMemoryError:
            storage.resize_(block.nbytes)
            data.as_strided_(fake.size(), fake.stride(), fake.storage_offset())
            raise
    if _layout(data) != _layout(fake):
        fake.reshaped()


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.size(), tensor.stride(), tensor.storage_offset()


def _to_copy(x: FakeTensor, *, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    """A copy on another device, or with another dtype or memory format."""
    source = x._index
    target = source if device is None else _target(device)
    if target is None or target == source:
        return _run(aten._to_copy.default, (x,), {"device": device, "non_blocking": non_blocking, **kwargs})
    kwargs.pop("pin_memory", None)
    data = aten._to_copy.default(x._data, **kwargs)
    nbytes = data.numel() * transfer.itemsize(source, target, x.dtype, data.dtype, non_blocking=non_blocking)
    target = transfer.send(data, source, target, nbytes, ready=_ready(x), differentiable=_differentiable(x))
    return data if target == HOST else FakeTensor(data, target)


def _copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Values from one tensor to another, between any two devices."""
    here, there = _home(source), _home(target)
    if here is None or there is None or here == there:
        return _run(aten.copy_.default, (target, source, non_blocking), {})
    data, into = _data(source), _data(target)
    nbytes = into.numel() * transfer.itemsize(here, there, source.dtype, target.dtype, non_blocking=non_blocking)
    differentiable = _differentiable(source) or _differentiable(target)
    faulty = faults.any_active()
    arriving = data.to(target.dtype).expand_as(into).clone() if faulty else into.copy_(data)
    arrives = transfer.send(arriving, here, there, nbytes, ready=_ready(source), differentiable=differentiable)
    if faulty and arrives == there:
        into.copy_(arriving)
    return target


def _becomes_gradient(func: Any) -> Callable[..., Tensor]:
    """`detach` or `clone`: what autograd does with the gradient that it leaves in `.grad`."""

    def detach(x: FakeTensor, **kwargs: Any) -> Tensor:
        node: Any = torch._C._current_autograd_node()  # None outside of backward
        if node is not None and node.name() == "torch::autograd::AccumulateGrad":
            mixing.check_gradient(node.variable, x)
        return _run(func, (x,), kwargs)

    return detach


def _item(x: FakeTensor) -> Any:
    """The value of a tensor with one element, copied to the host."""
    data = x._data.clone() if faults.any_active() else x._data
    transfer.send(data, x._index, HOST, x.dtype.itemsize, ready=_ready(x))
    return data.item()


def _set_storage(overload: str) -> Callable[..., Tensor]:
    func = getattr(aten.set_, overload)

    def run_on_storage(x: FakeTensor, storage: torch.UntypedStorage, *args: Any) -> Tensor:
        if not isinstance(storage, FakeStorage) or storage.index != x._index:
            mixing.refuse(describe(func), (x.device, storage.device))
        func(x._data, storage.plain, *args)
        _reshape(x)
        return x

    return run_on_storage


def _equal(x: Tensor, y: Tensor) -> bool:
    """Whether all values are equal, a byte that the host reads."""
    result = _run(aten.equal.default, (x, y), {})
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


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return run(func, describe(func), args, kwargs)


def _target(device: torch.device) -> Place | None:
    index = devices.index_of(device)
    return HOST if index is None and device.type == "cpu" else index


def _home(x: Tensor) -> Place | None:
    return x._index if isinstance(x, FakeTensor) else _target(x.device)


def _data(x: Tensor) -> Tensor:
    return x._data if isinstance(x, FakeTensor) else x


def _ready(x: Tensor) -> float:
    return memory.account(x._data.untyped_storage(), x._index).ready if isinstance(x, FakeTensor) else 0.0


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
