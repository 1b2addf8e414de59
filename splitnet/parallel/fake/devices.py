"""The fake devices that exist, and which of them a device argument means.

Inside PyTorch's C++ code fake device i is called `lazy:i`. That type has its own dispatch and autograd
keys with no kernels of their own, its tensors run backward on the calling thread, and `lazy:0` is not
`lazy:1`: the gradient of a copy between devices is a copy back. Python sees `fake:i`; a message that
PyTorch itself wrote may say `lazy:i`. Arguments under either name mean the same device.
"""

import torch

Place = int
"""The index of a fake device, or HOST."""

HOST: Place = -1

_fake: list[torch.device] = []  # torch.device("fake", i); empty until install
_native: list[torch.device] = []  # torch.device("lazy", i)


def count() -> int:
    """How many fake devices there are: 0 before `install`."""
    return len(_fake)


def name(place: Place) -> str:
    """The device of a place as a string: "fake:0", "cpu"."""
    return "cpu" if place == HOST else f"fake:{place}"


def grow(devices: int) -> None:
    """Make devices until there are `devices` of them; "fake" must be PyTorch's name for PrivateUse1."""
    for index in range(len(_fake), devices):
        _fake.append(torch.device("fake", index))
        _native.append(torch.device("lazy", index))


def fake(index: int) -> torch.device:
    """`fake:index`, as Python sees it."""
    return _fake[index]


def native(index: int) -> torch.device:
    """The same device under the name that C++ knows."""
    return _native[index]


def index_of(device: torch.device | str | int | None) -> int | None:
    """The index of the fake device that `device` means; None where it means another kind of device.

    Without an index, "fake" is `fake:0`, always: there is no current device to set. An integer is an
    index. An index that does not exist raises RuntimeError with CUDA's words.
    """
    if device is None:
        return None
    if isinstance(device, int):
        return _existing(device)
    if isinstance(device, str):
        device = torch.device(device)
    if device.type not in ("fake", "lazy"):
        return None
    return _existing(device.index or 0)


def required(device: torch.device | str | int | None) -> int:
    """As `index_of`, where only a fake device will do; None is `fake:0`. Raises ValueError otherwise."""
    index = index_of(0 if device is None else device)
    if index is None:
        raise ValueError(f"expected a fake device, but got {device}")
    return index


def _existing(index: int) -> int:
    if not 0 <= index < len(_fake):
        raise RuntimeError(f"fake error: invalid device ordinal (fake:{index} was asked for, {len(_fake)} installed)")
    return index
