"""What each layout waits for, and its cost on paper beside what was measured, where a run was asked for it."""

from collections.abc import Iterator, Mapping
from typing import Any

from splitnet.measure.manner import emulated_as, emulated_machine
from splitnet.measure.metrics import MIB
from splitnet.measure.summary import Summary, fits, heading

MEASURED = ("layout", "step ms", "exposed ms", "peak MiB")
ON_PAPER = ("step on paper", "paper / measured", "exposed on paper", "peak on paper")

EXPOSED = "Exposed: exchanges that no compute hides; all on the devices' clocks, the device with most of it."
WHAT = (
    "On paper: from the network's table and the machine's figures alone, as python -m splitnet.predict has them"
    " (--machine)."
)


def headings(summary: Summary) -> tuple[str, ...]:
    return MEASURED + ON_PAPER * any(layout.get("predicted") for layout in summary.layouts)


def rows(summary: Summary) -> list[list[str]]:
    """One for each layout whose clocks tell what is exposed or that is on paper, under `headings`."""
    width = len(headings(summary))
    told = (x for x in summary.layouts if fits(x) and (x.get("exposed_ms") or x.get("predicted")))
    return [[heading(layout), *_measured(layout), *_on_paper(layout)][:width] for layout in told]


def text(summary: Summary) -> str:
    on_paper = len(headings(summary)) > len(MEASURED)
    return " ".join([EXPOSED, *[WHAT] * on_paper, *[_apart(summary)] * (on_paper and bool(emulated_as(summary.run)))])


def _apart(summary: Summary) -> str:
    """Why paper and the clocks differ, beyond what either has wrong."""
    launch = emulated_machine(summary.run).get("launch")
    cost = f" of {1e6 * launch:,.3g} us" if isinstance(launch, int | float) else ""
    return (
        "Clocks divide this CPU's times by one factor, that of products: what is bound by memory keeps this CPU's"
        f" proportion, and starting an operation costs nothing. Paper has the machine's memory, and a launch{cost}"
        " for each operation: both weigh more, the smaller the batch and the faster the machine."
    )


def _step(layout: Mapping[str, Any]) -> float:
    return float((layout.get("device_step_ms") or layout["step_ms"])["median"])


def _measured(layout: Mapping[str, Any]) -> Iterator[str]:
    exposed, peaks = layout.get("exposed_ms"), [held["peak"] for held in layout["memory"].values()]
    yield f"{_step(layout):,.2f}"
    yield f"{exposed['median']:,.2f}" if exposed else ""
    yield f"{max(peaks) / MIB:,.0f}" if peaks else ""


def _on_paper(layout: Mapping[str, Any]) -> Iterator[str]:
    found = layout.get("predicted")
    if not found:
        yield from [""] * len(ON_PAPER)
        return
    yield f"{found['step_ms']:,.2f}"
    yield f"{found['step_ms'] / _step(layout):.2f}" if _step(layout) else ""
    yield f"{found['exposed_ms']:,.2f}"
    yield f"{max(found['peak']) / MIB:,.0f}"
