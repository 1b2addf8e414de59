"""The two-GPU AlexNet of 2012 in PyTorch: two half-width towers that prove to be one network."""

import sys
from importlib import import_module
from itertools import pairwise
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


def _without_interrupts(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


_module = dict(pairwise(sys.orig_argv)).get("-m", "")
if _module.partition(".")[0] == __name__:
    # A command imports for seconds before its main can take Ctrl-C; that ends it by the signal, as a shell expects.
    sys.excepthook = _without_interrupts
