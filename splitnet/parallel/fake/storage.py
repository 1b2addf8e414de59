"""Storages of fake tensors, as `Tensor.untyped_storage` gives them out and `torch.load` makes them."""

from typing import Any, NoReturn

import torch

from splitnet.parallel.fake import devices, memory, transfer
from splitnet.parallel.fake.devices import HOST

_CHANGING_OR_READING = frozenset(
    {
        "__getitem__", "__setitem__", "__deepcopy__", "__reduce__", "_weak_ref", "_write_file", "bool", "byte",
        "byteswap", "char", "clone", "copy_", "cpu", "cuda", "double", "fill_", "float", "hpu", "int", "is_pinned",
        "long", "new", "pin_memory", "resize_", "share_memory_", "short", "to", "tolist", "type",
    }
)  # fmt: skip


_new_storage: Any = torch.UntypedStorage.__new__


class FakeStorage(torch.UntypedStorage):
    """Says where the bytes are and how many, and can be given to `Tensor.set_`; tensors read and change them."""

    plain: torch.UntypedStorage  # the bytes, on the CPU
    index: int

    @staticmethod
    def __new__(cls: type["FakeStorage"], plain: torch.UntypedStorage, index: int) -> "FakeStorage":
        # The shell is on the meta device, so that no CPU tensor can take it for its own memory.
        self: FakeStorage = _new_storage(cls, 0, device="meta")
        self.plain, self.index = plain, index
        return self

    def __init__(self, plain: torch.UntypedStorage, index: int) -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return devices.fake(self.index)

    @property
    def _cdata(self) -> int:
        return self.plain._cdata

    def data_ptr(self) -> int:
        return self.plain.data_ptr()

    def nbytes(self) -> int:
        return self.plain.nbytes()

    def size(self) -> int:
        return self.plain.nbytes()

    def __len__(self) -> int:
        return self.plain.nbytes()

    def __repr__(self) -> str:
        return f"[FakeStorage of {len(self)} bytes on {self.device}]"


def _refuse(self: FakeStorage, *args: Any, **kwargs: Any) -> NoReturn:
    raise NotImplementedError(f"the storage of a tensor on {self.device} is read and changed through tensors only")


for _name in _CHANGING_OR_READING:
    setattr(FakeStorage, _name, _refuse)


def new_storage(cls: type[torch.UntypedStorage], *args: Any, device: Any = None, **kwargs: Any) -> Any:
    """`UntypedStorage.__new__`, which would crash the process where it is asked for memory of a fake device."""
    if device is not None and devices.index_of(device) is not None:
        raise NotImplementedError(f"a storage on {device} cannot be made alone: make a tensor")
    return _new_storage(cls, *args, **({} if device is None else {"device": device}), **kwargs)


def restore(storage: Any, location: str) -> FakeStorage | None:
    """A loaded storage on the fake device `location`; None where that is another kind of device."""
    if not location.startswith("fake"):
        return None
    index = devices.required(location)
    plain = storage.clone()
    memory.account(plain, index)
    if plain.nbytes():
        transfer.count(HOST, index, plain.nbytes())
    return FakeStorage(plain, index)


def tag(storage: Any) -> None:
    """No location to save: fake tensors are saved as host tensors and a name."""
