"""The two-GPU AlexNet of 2012 in PyTorch: two half-width towers that prove to be one network."""

from importlib import import_module
from typing import Any

# Public names and where they live. Looked up when first used, so that the tables need no torch.
_PUBLIC = {
    "build": "splitnet.parallel.placement",
    "presets": "splitnet.network.presets",
    "preset": "splitnet.network.presets",
    "Architecture": "splitnet.network.architecture",
    "Layer": "splitnet.network.architecture",
    "UsageError": "splitnet.errors",
}

__all__ = ["Architecture", "Layer", "UsageError", "build", "fake", "preset", "presets"]


def __getattr__(name: str) -> Any:
    if name == "fake":
        return import_module("splitnet.parallel.fake")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'splitnet' has no attribute {name!r}")
