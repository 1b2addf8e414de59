"""Making PyTorch know the fake devices. It happens once in a process and cannot be undone."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from splitnet.parallel.fake import clocks, devices, dispatch, memory, runtime, storage, tensor

aten = torch.ops.aten

_libraries: list[Library] = []  # what they register lasts as long as they do
_warned: list[bool] = []


def install(count: int = 2) -> None:
    """Make `fake:0` to `fake:{count-1}` known to PyTorch. A second call adds those that are missing.

    From the first call on `torch.accelerator` says `fake` in this process. Raises ValueError where `count`
    is less than 1, RuntimeError where another backend has taken the place of PyTorch's extra device.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    if not _libraries:
        _register()
    devices.grow(count)
    memory.grow(count)
    clocks.grow(count)


def installed() -> int:
    """How many fake devices there are: 0 before `install`."""
    return devices.count()


def _register() -> None:
    taken = torch._C._get_privateuse1_backend_name()
    if taken != "privateuseone":
        raise RuntimeError(f"fake devices need PyTorch's one extra device type, which is taken by {taken!r}")
    torch.utils.backend_registration.rename_privateuse1_backend("fake")
    torch._register_device_module("fake", runtime)
    torch._C._acc.register_python_privateuseone_hook(_Hooks())
    torch._C._acc.register_python_privateuseone_device_guard(_Guard())
    # Before PyTorch's own entry for such devices (23), which would crash the process.
    torch.serialization.register_package(15, storage.tag, storage.restore)
    for name in ("set_device_index", "synchronize", *runtime.MEMORY):  # those that would fail an internal check
        setattr(torch.accelerator, name, getattr(runtime, name))
    torch.UntypedStorage.__new__ = staticmethod(storage.new_storage)  # type: ignore[assignment]
    tensor.operate = dispatch.dispatch
    _libraries.extend(_kernels())


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    """Answers of the device type that PyTorch's C++ code asks for."""

    def is_available(self) -> bool:
        return True

    def is_built(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True


class _Guard(torch._C._acc.DeviceGuard):
    """Without a guard, code that changes the current device would crash the process."""

    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


def _kernels() -> list[Library]:
    """Factories under both names of the devices, everything that comes past the tensors, and what differs by device."""
    kernels, fallbacks = Library("aten", "IMPL"), Library("_", "IMPL")
    for key in ("PrivateUse1", "Lazy"):
        for func in (aten.empty.memory_format, aten.empty_strided.default):
            kernels.impl(func, _kernel(func), key)
        fallbacks.fallback(_fallback, key)
    for func in (aten.copy_.default, aten._local_scalar_dense.default):  # torch.tensor calls these past the tensors
        kernels.impl(func, _kernel(func), "Lazy")
    kernels.impl(aten.dropout.default, dispatch.dropout, "AutogradLazy")
    kernels.impl(aten._has_compatible_shallow_copy_type.default, _can_become, "AutogradLazy")
    kernels.impl(aten._pin_memory.default, _pin_memory, "CPU")
    return [kernels, fallbacks]


def _kernel(func: Any) -> Any:
    return lambda *args, **kwargs: dispatch.dispatch(func, args, kwargs)


def _fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    return dispatch.dispatch(func, args, kwargs)


def _can_become(x: Tensor, other: Tensor) -> bool:
    """Whether `x.data = other` is possible; asked by `nn.Module.to`, which makes new parameters otherwise."""
    return isinstance(x, tensor.FakeTensor) and other.device.type in ("fake", "cpu")


def _pin_memory(x: Tensor, device: torch.device | None = None) -> Tensor:
    if not _warned:
        _warned.append(True)
        warnings.warn("fake devices have no pinned memory: pin_memory does nothing", stacklevel=2)
    return x.view_as(x)
