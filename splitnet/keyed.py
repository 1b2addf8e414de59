"""Chance as a pure function: integer hashes of a key, the same on every device and in every process.

Generators remember, and differ between devices; a hash of (seed, step, row, image, …) does neither. The
functions take Python integers and int64 tensors alike and stay below 2**63, so that no product overflows.
"""

from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", int, Tensor)

RANGE = 1 << 32
"""Hashes are uniform in [0, RANGE)."""

_MASK = RANGE - 1


def mix(x: Number) -> Number:
    """A bijection of [0, 2**32) whose every output bit depends on every input bit.

    Two rounds of multiply and xor-shift; both factors are odd and below 2**31.
    """
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x5BD1E995) & _MASK
    return x ^ (x >> 16)


def key(*parts: int) -> int:
    """One hash of a sequence of integers, in which order and length count."""
    value = len(parts)
    for part in parts:
        while True:  # parts beyond 32 bits are folded in 32 bits at a time
            value = mix((value + 0x9E3779B9 & _MASK) ^ (part & _MASK))
            part >>= 32
            if part in (0, -1):
                break
    return value
