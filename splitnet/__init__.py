"""The two-GPU AlexNet of 2012 in PyTorch: two half-width towers that prove to be one network."""

import sys
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


_hook = sys.excepthook


def _without_interrupts(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _hook(kind, error, trace)


if sys.argv[:1] == ["-m"] and any(word.partition(".")[0] == __name__ for word in sys.orig_argv):
    # A command, before its main can take Ctrl-C: it imports for seconds. The signal ends it, as a shell expects.
    sys.excepthook = _without_interrupts
