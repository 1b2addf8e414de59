"""Running an operation of one fake device: the CPU's operation on the CPU data, with everything accounted for."""

import time
from typing import Any

import torch
from torch import Tensor

from splitnet.parallel.fake import clocks, devices, log, memory, mixing, transfer
from splitnet.parallel.fake.devices import HOST, Place
from splitnet.parallel.fake.operators import Operator, describe
from splitnet.parallel.fake.tensor import FakeTensor

CPU = torch.device("cpu")


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func`, an `OpOverload`, whose tensors must be on one device; the result is there or on its `device`."""
    operator = describe(func)
    fakes: list[FakeTensor] = []
    hosts: list[Tensor] = []
    plain_args = [_plain(value, fakes, hosts) for value in args]
    plain_kwargs = {name: _plain(value, fakes, hosts) for name, value in kwargs.items()} if kwargs else {}
    index = common(operator, fakes)
    if hosts and fakes:
        _check_hosts(operator, args, kwargs, fakes[0])
    target = _place(operator, plain_kwargs, index)
    if operator.launches and operator.reads and index != HOST and clocks.now(index) > clocks.waited(index):
        _check_arrived(operator, fakes)

    start = time.perf_counter()
    result = operator.run(*plain_args, **plain_kwargs)
    if operator.launches and index != HOST:
        log.kernel(index, operator.name, clocks.compute(index, time.perf_counter() - start))
        if operator.reads and clocks.beside[index]:
            _use(fakes, index)

    if operator.written and fakes:
        owners = {id(fake._data): fake for fake in fakes}
        if operator.reshapes:
            for fake in fakes:
                reshape(fake)
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


def common(operator: Operator, fakes: list[FakeTensor]) -> Place:
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


def _check_arrived(operator: Operator, fakes: list[FakeTensor]) -> None:
    """Refuse what another stream is still bringing, which on a GPU would be read half arrived."""
    for fake in fakes:
        if memory.account(fake._data.untyped_storage(), fake._index).ready(fake._data) > clocks.waited(fake._index):
            raise RuntimeError(
                f"{operator.name} on {fake.device} uses a tensor that another stream is still copying: let the current"
                " stream wait for it first (wait_event, wait_stream)"
            )


def _use(fakes: list[FakeTensor], index: int) -> None:
    """The current stream uses these; but in backward CUDA's would be that of forward, which nobody notes here."""
    if torch._C._current_autograd_node() is not None:
        return
    for fake in fakes:
        memory.account(fake._data.untyped_storage(), index).used()


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


def reshape(fake: FakeTensor) -> None:
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
