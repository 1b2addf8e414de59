"""How a run computed, in words: its options that are not as usual, and the machine that it stands for."""

from collections.abc import Mapping
from typing import Any


def emulated_machine(run: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the machine that a run was beside on paper, and whose clocks its devices kept; {} if none."""
    found = run.get("emulated", run.get("machine"))  # until it had a name of its own it was written over the host's
    return found if isinstance(found, dict) and "speed" in found else {}


def emulated_as(run: Mapping[str, Any]) -> str:
    """The machine in whose proportions fake devices' clocks run; "" where they run as this CPU."""
    found = emulated_machine(run)
    return str(found.get("name") or "") if found.get("speed") else ""


FIGURES = (
    ("float32", 1e12, "TFLOP/s"),
    ("memory_bandwidth", 1e9, "GB/s of memory"),
    ("link", 1e9, "GB/s between two"),
    ("latency", 1e-6, "us until a copy begins"),
)
"""Of a machine, what is told: figure, its unit in those of `machines`, in words."""


def machine_told(found: Mapping[str, Any]) -> str:
    """A machine in a line: its name, and its main peaks."""
    name, gpu, speed = (found.get(key) for key in ("name", "gpu", "speed"))
    parts = [f"{name} ({gpu})" if gpu else f"{name}"]
    parts += [f"{found[key] / unit:,.4g} {words}" for key, unit, words in FIGURES if _is_number(found.get(key))]
    return ", ".join(parts + ([f"clocks {speed:,.4g} times as fast as this CPU"] if _is_number(speed) else []))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def computed(options: Mapping[str, Any]) -> list[str]:
    """What every layout is computed in, a word or two for each option of a run that is not as usual."""
    precision = options.get("precision") or "float32"
    return [precision] * (precision != "float32") + ["compiled"] * bool(options.get("compile"))


def crossed(options: Mapping[str, Any]) -> list[str]:
    """The same of what towers hand each other."""
    wire = options.get("wire")
    return [f"{wire} on the wire"] * bool(wire) + ["overlap"] * bool(options.get("overlap"))


def rounded(options: Mapping[str, Any]) -> list[str]:
    """What rounds more than float32 does."""
    precision, wire = options.get("precision") or "float32", options.get("wire")
    found = [precision] * (precision not in ("float32", "float64"))
    return found + [f"{wire} on the wire"] * (wire not in (None, "float32", precision))
