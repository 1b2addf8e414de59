"""How a table is computed: what changes speed and rounding, but not the function."""

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]
"""What products are computed in. Weights, response norms, the loss and the optimizer are float32 in each.

float32: float32. tf32: float32 whose products CUDA rounds to 10 bits of mantissa. bf16: products and the activations
between them are bfloat16.
"""

Wire = Literal["float32", "float16", "bf16"]
"""What activations and their gradients are cast to while they cross."""

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Execution:
    """How the rows compute, and what crosses between towers."""

    precision: Precision = "float32"
    wire: Wire | None = None
    """None: activations cross as they are."""
    overlap: bool = False
    """Crossing rows begin with their own tower's channels while the others' are under way."""
    compiled: bool = False
    """What a row computes is compiled by torch.compile."""

    @property
    def activations(self) -> torch.dtype | None:
        """The dtype that rows cast to; None: the weights' own (float32, or float64 in proofs)."""
        return torch.bfloat16 if self.precision == "bf16" else None

    @property
    def crosses_as(self) -> torch.dtype | None:
        """The dtype that crossing tensors are cast to; None: they cross as they are."""
        return None if self.wire is None else DTYPES[self.wire]

    @property
    def itemsize(self) -> int:
        """Bytes of each number that crosses, where weights are float32."""
        return (self.crosses_as or self.activations or torch.float32).itemsize
