"""Charts of a run as plotly figures, in plain data: speed and memory. Plotly itself is not needed."""

from collections.abc import Iterable, Sequence
from typing import Any

from splitnet.measure.elements import Chart, Key, Table, literal
from splitnet.measure.metrics import KINDS, MIB, interval
from splitnet.measure.summary import Summary, fits, heading, named
from splitnet.measure.svg import ink

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
CLEAR = "rgba(0,0,0,0)"
Layout = dict[str, Any]


def layout(**more: Any) -> dict[str, Any]:
    """What all charts share; colours of text and lines are page.css's, so that they follow the reader's scheme."""
    return {
        "font": {"family": FONT, "size": 13},
        "margin": {"l": 8, "r": 16, "t": 10, "b": 44},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left"},
        "dragmode": False,  # a finger on a chart scrolls the page
        **more,
    }


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": literal(title), "standoff": 8, "font": {"size": 12}},
        "tickfont": {"size": 12},
        "ticklabelstandoff": 6,  # the 0 of one axis stays clear of the other's
        "automargin": True,
        "fixedrange": True,
        "zeroline": False,
        "separatethousands": True,
        **more,
    }


def count_axis(title: str, counts: Iterable[int], most: int, **more: Any) -> dict[str, Any]:
    """An axis of whole numbers, with about so many ticks at most; half ones would be rounded to their neighbours."""
    held = list(counts)
    each = {"dtick": 1, "tick0": 0} if max(held, default=0) - min(held, default=0) < most else {"nticks": most}
    return axis(title, tickformat=",d", **each, **more)


def _places(names: Sequence[str]) -> dict[str, Any]:
    """The axis of bars, one beside each name, the first on top."""
    return axis(
        tickvals=list(range(len(names))),
        ticktext=names,
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
    )


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _named(entry: Layout, device: str = "") -> str:
    """A layout's heading on two lines, for an axis."""
    what = heading(entry | {"devices": ()})
    where = device or ", ".join(named(entry.get("devices") or ()))
    return "<br>".join(literal(_short(part)) for part in (what, where) if part)


def _unfit(entries: Iterable[tuple[int, Layout]]) -> list[dict[str, Any]]:
    """Words where a layout has no bar."""
    words = {"text": "does not fit", "showarrow": False, "x": 0, "xanchor": "left", "xshift": 6}
    return [words | {"y": place} for place, entry in entries if not fits(entry)]


# Speed


def speed(summary: Summary) -> Chart | None:
    """Images/s of each layout: a bar to the median, a whisker over all steps. Emulated: on the devices' clocks too."""
    entries = summary.layouts
    if not any(map(fits, entries)):
        return None
    places = list(enumerate(entries))
    emulated = summary.emulated and any(clocked(summary, entry) for entry in entries)
    bars = [("wall time of this CPU" if emulated else "wall time", "other" if emulated else "forward")]
    data = [_bars(places, *bars[0], {i: e["images_per_second"] for i, e in places if fits(e)})]
    if emulated:
        bars.append(("devices’ clocks, emulated", "forward"))
        on_clocks = {i: figures for i, e in places if (figures := clocked(summary, e)) is not None}
        data.append(_bars(places, *bars[1], on_clocks))
    least = "Bars are medians, whiskers run from the slowest step to the fastest."
    return Chart(
        "throughput",
        "Images per second",
        least,
        data,
        layout(
            barmode="group",
            bargap=0.32,
            bargroupgap=0.08,
            xaxis=axis("images/s", rangemode="tozero"),
            yaxis=_places([_named(entry) for entry in entries]),
            annotations=_unfit(places),
        ),
        60 + len(entries) * (64 if emulated else 46),
        [speeds(summary)],
        [Key(name, ink(colour)) for name, colour in bars] if emulated else [],
    )


def _bars(
    places: Sequence[tuple[int, Layout]], name: str, colour: str, spreads: dict[int, dict[str, float]]
) -> dict[str, Any]:
    known = [(i, _named(entry), spreads[i]) for i, entry in places if i in spreads]
    told = [f"{s['median']:,.1f} ({s['least']:,.1f}–{s['greatest']:,.1f})" for *_, s in known]
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": [s["median"] for *_, s in known],
        "y": [i for i, *_ in known],
        "text": [f"{s['median']:,.1f}" for *_, s in known],
        "textposition": "auto",
        "insidetextanchor": "start",
        "marker": {"color": ink(colour)},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [s["greatest"] - s["median"] for *_, s in known],
            "arrayminus": [s["median"] - s["least"] for *_, s in known],
            "thickness": 1.5,
            "width": 4,
        },
        "hovertext": [f"{place}<br>{text} images/s<br>{name}" for (_, place, _), text in zip(known, told, strict=True)],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def clocked(summary: Summary, entry: Layout) -> dict[str, float] | None:
    """Images/s had the emulated devices worked side by side: a spread; None where their clocks were not read."""
    images, steps = summary.run["options"].get("batch_size"), entry.get("device_step_ms")
    ends = {"median": "median", "least": "greatest", "greatest": "least"}
    if not steps or not isinstance(images, int) or not 0 < images < 1e9 or min(steps[end] for end in ends) < 1e-6:
        return None
    return {name: 1000 * images / steps[of] for name, of in ends.items()}


def speeds(summary: Summary) -> Table:
    own = "emulated" if summary.emulated else "device"
    columns = ["images/s", "least", "greatest", "n", "step ms, wall", f"step ms, {own}", "speed ratio", "low", "high"]
    exposed = any(entry.get("exposed_ms") for entry in summary.layouts)
    columns[6:6] = ["exposed ms"] * exposed
    rows = []
    for entry in summary.layouts:
        if not fits(entry):
            rows.append([heading(entry), "does not fit"])
            continue
        images, ratio, clock = entry["images_per_second"], entry.get("ratio"), entry.get("device_step_ms")
        told = [*(f"{images[key]:,.1f}" for key in ("median", "least", "greatest")), f"{images['n']:,}"]
        told += [f"{entry['step_ms']['median']:,.1f}", f"{clock['median']:,.1f}" if clock else ""]
        waits = entry.get("exposed_ms")
        told += [f"{waits['median']:,.2f}" if waits else ""] * exposed
        told += [f"{x:.3f}" for x in (ratio["median"], *interval(ratio))] if ratio else ["", "", ""]
        rows.append([heading(entry), *told])
    return Table("Speed of each layout", ["layout", *columns], rows)


# Memory


def peaks(summary: Summary) -> Chart | None:
    """Peak memory of each layout's fullest device."""
    entries = summary.layouts
    full = {
        i: max(entry["memory"].items(), key=_peak) for i, entry in enumerate(entries) if fits(entry) and entry["memory"]
    }
    if not full:
        return None
    mib = {i: held["peak"] / MIB for i, (_, held) in full.items()}
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": list(mib.values()),
        "y": list(mib),
        "text": [f"{peak:,.0f}" for peak in mib.values()],
        "textposition": "auto",
        "insidetextanchor": "start",
        "marker": {"color": ink("forward")},
        "hovertext": [f"{_named(entries[i], full[i][0])}<br>{peak:,.1f} MiB at the peak" for i, peak in mib.items()],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    table = [[heading(entries[i]), full[i][0], f"{peak:,.1f}"] for i, peak in mib.items()]
    table += [[heading(entry), "does not fit", ""] for entry in entries if not fits(entry)]
    return Chart(
        "peaks",
        "Peak memory of the fullest device",
        "What one device must have for a layout to fit.",
        [bar],
        layout(
            bargap=0.42,
            xaxis=axis("MiB", rangemode="tozero"),
            yaxis=_places([_named(entry) for entry in entries]),
            annotations=_unfit(enumerate(entries)),
        ),
        60 + 46 * len(entries),
        [Table("Peak memory of each layout", ["layout", "fullest device", "peak MiB"], table, left=2)],
    )


def _peak(item: tuple[str, dict[str, int]]) -> int:
    return item[1]["peak"]


def memory(summary: Summary) -> Chart | None:
    """Each device's peak by what takes it, stacked."""
    held = [(e, device, kinds) for e in summary.measured for device, kinds in e["memory"].items()]
    if not held:
        return None
    names = [_named(entry, device) for entry, device, _ in held]
    data = []
    for kind in KINDS:
        mib = [kinds[kind] / MIB for *_, kinds in held]
        told = [f"{name}<br>{kind}: {value:,.1f} MiB" for name, value in zip(names, mib, strict=True)]
        data.append({
            "type": "bar", "orientation": "h", "name": kind, "x": mib, "y": list(range(len(held))),
            "marker": {"color": ink(kind)}, "text": [f"{value:,.0f}" for value in mib], "textposition": "inside",
            "insidetextanchor": "middle", "textangle": 0, "hovertext": told,
            "hovertemplate": "%{hovertext}<extra></extra>",
        })  # fmt: skip
    rows = [[heading(e), d, *(f"{kinds[k] / MIB:,.1f}" for k in ("peak", *KINDS))] for e, d, kinds in held]
    return Chart(
        "memory",
        "Memory of each device at its peak",
        "In MiB, by what takes it; emulated devices count tensors only."
        if summary.emulated
        else "In MiB, by what takes it.",
        data,
        layout(
            barmode="stack",
            bargap=0.42,
            uniformtext={"mode": "hide", "minsize": 10},
            xaxis=axis("MiB", rangemode="tozero"),
            yaxis=_places(names),
        ),
        60 + 46 * len(held),
        [Table("Memory of each device", ["layout", "device", "peak MiB", *KINDS], rows, left=2)],
        [Key(kind, ink(kind)) for kind in KINDS],
    )
