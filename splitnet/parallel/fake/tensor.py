"""A tensor on a fake device: a shell with the device's name around a tensor on the CPU."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from splitnet.parallel.fake import devices, memory, mixing
from splitnet.parallel.fake.storage import FakeStorage

_OWN_ATTRIBUTES = frozenset({"_data", "_index"})

_DATA: Any = torch._C.TensorBase.data  # the two properties that the class below covers
_GRAD: Any = torch._C.TensorBase.grad

Operate = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def _not_installed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    raise RuntimeError("fake devices are not installed: call splitnet.fake.install first")


operate: Operate = _not_installed
"""What an operation on fake tensors does; `install` sets it."""


class FakeTensor(Tensor):
    """Lives on device `_index` and holds its values in `_data`, whose shape and strides it shows.

    Views hold views, so that an operation in place reaches every tensor that shares the storage.
    """

    _data: Tensor
    _index: int

    @staticmethod
    def __new__(cls: type["FakeTensor"], data: Tensor, index: int) -> "FakeTensor":
        try:
            memory.account(data.untyped_storage(), index)
        except NotImplementedError:  # there is no storage to count
            raise NotImplementedError(
                f"fake devices hold dense tensors only: a tensor with layout {data.layout} was asked for"
            ) from None
        self = Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=devices.native(index),
        )
        if data.is_conj():  # lazy bits, which PyTorch asks the shell for
            torch._C._set_conj(self, True)
        if data.is_neg():
            torch._C._set_neg(self, True)
        self._data, self._index = data, index
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return operate(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The fake device; a Python name for what C++ calls `lazy`."""
        return devices.fake(self._index)

    @property
    def data(self) -> Tensor:
        """As for every tensor: the same memory without its history."""
        return _DATA.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, FakeTensor):
            return self._leave(value)
        _DATA.__set__(self, value)
        # An alias: the two tensors share memory from here on, but not their shapes.
        self._data, self._index = value._data.detach(), value._index
        return None

    def _leave(self, value: Tensor) -> None:
        """Become an ordinary tensor with `value`'s memory; how `nn.Module.to` moves parameters to the host."""
        kept, self.grad = self.grad, None
        new = nn.Parameter(value, self.requires_grad) if getattr(self, "_is_param", False) else value.detach()
        torch.utils.swap_tensors(self, new.requires_grad_(self.requires_grad))
        self.grad = None if kept is None else kept.to(value.device)

    @property
    def grad(self) -> Tensor | None:
        """As for every tensor. Autograd does not look where the gradients of subclasses are, so this does."""
        grad = _GRAD.__get__(self)
        if grad is not None:
            mixing.check_gradient(self, grad)
        return grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        _GRAD.__set__(self, value)

    @grad.deleter
    def grad(self) -> None:
        _GRAD.__delete__(self)

    def reshaped(self) -> None:
        """Show the shape and strides that `_data` has now, after an operation changed them in place."""
        _DATA.__set__(self, FakeTensor(self._data, self._index))

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As for every tensor: itself where nothing is to be done."""
        kwargs = {name: _native(value) for name, value in kwargs.items()}
        return Tensor.to(self, *map(_native, args), **kwargs)

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else super().__format__(spec)

    def tolist(self) -> Any:
        """The values, copied to the host."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused as on a GPU, except with `force`, which copies to the host."""
        if force:
            return self.detach().cpu().resolve_conj().resolve_neg().numpy()
        return self._no_numpy()

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._no_numpy()

    def __dlpack__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._no_numpy()

    def _no_numpy(self) -> NoReturn:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def data_ptr(self) -> int:
        """Where the values are: equal for tensors that share their first element, as everywhere."""
        return self._data.data_ptr()

    def untyped_storage(self) -> FakeStorage:
        """The storage, which can be asked for its place and size but not for its bytes."""
        return FakeStorage(self._data.untyped_storage(), self._index)

    def record_stream(self, stream: Any) -> None:
        """Keep the memory, once it is freed, until `stream` has done what it was asked for by then."""
        memory.account(self._data.untyped_storage(), self._index).record(stream.queue)

    def share_memory_(self) -> "FakeTensor":
        """Does nothing, as on a GPU."""
        return self

    def __copy__(self) -> Tensor:
        new = self.detach().requires_grad_(self.requires_grad)
        new.__dict__.update(self._attributes())
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> "FakeTensor":
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol "
                "at the moment. If you were attempting to deepcopy a module, this may be because of a "
                "torch.nn.utils.weight_norm usage, see https://github.com/pytorch/pytorch/pull/103001"
            )
        # The CPU's own deepcopy keeps strides, and through the memo which tensors share a storage.
        new = FakeTensor(copy.deepcopy(self._data, memo), self._index)
        memo[id(self)] = new
        new.requires_grad_(self.requires_grad)
        if self.grad is not None:
            new.grad = copy.deepcopy(self.grad, memo)
        new.__dict__.update(copy.deepcopy(self._attributes(), memo))
        return new

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Saved as a host tensor and a device name, in functions that `torch.load` trusts."""
        if getattr(self, "_is_param", False):
            return torch._utils._rebuild_parameter, (self.detach(), self.requires_grad, OrderedDict())
        arguments = self.detach().cpu(), self.dtype, str(self.device), self.requires_grad
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, arguments

    def _attributes(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OWN_ATTRIBUTES}

    # `nn.Module.to` asks for these two, and then changes a parameter in place, as it does on a GPU.
    # `torch.compile` calls them.

    def __tensor_flatten__(self) -> NoReturn:
        raise RuntimeError("fake devices compute operation by operation: torch.compile cannot trace them")

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> NoReturn:
        raise RuntimeError("fake devices compute operation by operation: torch.compile cannot trace them")

    def __repr__(  # type: ignore[override]
        self, *, tensor_contents: Any = None
    ) -> str:
        """As on a GPU. Looking at a tensor is not counted as a copy."""
        notes = [repr(self._data.detach())[:-1], f"device='{self.device}'"]
        if self.grad_fn is not None:
            notes.append(f"grad_fn=<{type(self.grad_fn).__name__}>")
        elif self.requires_grad:
            notes.append("requires_grad=True")
        prefix = "Parameter containing:\n" if getattr(self, "_is_param", False) else ""
        return f"{prefix}{', '.join(notes)})"


def _native(value: Any) -> Any:
    """A device argument of `to` under the name that C++ compares; anything else unchanged."""
    if isinstance(value, str | torch.device) or type(value) is int:
        index = devices.index_of(value)
        return value if index is None else devices.native(index)
    return value
