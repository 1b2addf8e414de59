"""Make the pages of a run again, or compare two runs, figure by figure; with --fail-if, as a gate."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from splitnet import tables
from splitnet.errors import UsageError
from splitnet.measure import markdown
from splitnet.measure.difference import Difference, Gate, circumstances, differences, gate, unlike, unpaired
from splitnet.measure.records import SCHEMA, plain
from splitnet.measure.summary import Summary, summarise
from splitnet.options import guarded, option, parse, positional, refuse
from splitnet.pages import NO_PAGE, has_page, write_files, write_summary


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The command line."""

    run: Path = positional("a run's folder")
    run2: Path | None = positional("another, to compare with the first", None)
    fail_if: tuple[str, ...] = option(
        (), 'exit 1 if so: "images_per_second < 0.95" (a ratio), "step_ms > 2000ms" (itself)', metavar="CONDITION"
    )
    out: Path | None = option(None, "write there; without it a run's pages go to its folder, a comparison nowhere")


def one(summary: Summary, options: ReportOptions, console: Console) -> None:
    """The pages of one run, its verdict, and what could not be made."""
    written = write_summary(summary, options.out or options.run)
    console.print(summary.verdict, highlight=False)
    for line in summary.missing:
        console.print(f"Left out: {line}", highlight=False, soft_wrap=True, markup=False)
    if not has_page():
        console.print(NO_PAGE, highlight=False, soft_wrap=True)
    page = next(path for path in reversed(written) if path.suffix in (".html", ".md"))
    console.print(f"Page: {page}", highlight=False, soft_wrap=True, markup=False)


def two(before: Summary, after: Summary, options: ReportOptions, console: Console) -> None:
    """What differs between two runs; with --out, as files as well."""
    for which, run in (("before", before), ("after", after)):
        console.print(f"{which}: {run.name}\n  {run.verdict}", highlight=False, markup=False)
        for line in run.missing:
            console.print(f"  Left out: {line}", highlight=False, soft_wrap=True, markup=False)
    rows = differences(before, after)
    if warning := unlike(before, after):
        console.print(warning, highlight=False, markup=False)
    console.print(_figures([row for row in rows if not row.same]))
    same = sum(row.same for row in rows)
    if same:
        console.print(f"The same in both: {same:,} figure{'s' * (same != 1)}.", highlight=False)
    others = circumstances(before, after)
    if others:
        console.print(_others(others))
    for names, which in zip(unpaired(before, after), ("first", "second"), strict=True):
        if names:
            console.print(f"Only in the {which} run: {', '.join(names)}", highlight=False, markup=False)
    if options.out is not None:
        files = {"difference.md": markdown.difference(before, after), "difference.json": _as_json(before, after)}
        for path in write_files(options.out, files):
            console.print(f"Written: {path}", highlight=False, soft_wrap=True, markup=False)


def _figures(rows: Sequence[Difference]) -> Table:
    table = Table(title="Figures, the largest difference first", box=box.SIMPLE_HEAD, pad_edge=False)
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("figure", overflow="fold")  # a name for --fail-if, and the one that gives way
    for name in ("before", "after", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_row(*markdown.cells(row))
    return table


def _others(others: Sequence[tuple[str, object, object]]) -> Table:
    table = Table(title="What else differs", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title_style = "bold"
    for name in ("", "before", "after"):
        table.add_column(name, overflow="fold")
    for name, first, second in others:
        table.add_row(name, *("" if value is None else str(value) for value in (first, second)))
    return table


def _as_json(before: Summary, after: Summary) -> str:
    first, second = unpaired(before, after)
    content = {
        "schema": SCHEMA,
        "before": before.name,
        "after": after.name,
        "figures": [asdict(row) | {"verdict": row.verdict} for row in differences(before, after)],
        "circumstances": [{"what": n, "before": a, "after": b} for n, a, b in circumstances(before, after)],
        "only_before": first,
        "only_after": second,
    }
    return json.dumps(plain(content), indent=2) + "\n"


def failures(gates: Sequence[Gate], before: Summary | None, after: Summary) -> list[str]:
    """A line for each condition that holds; all are tried, so that a wrong one is always an error."""
    found = [gate.failure(before, after) for gate in gates]
    return [line for line in found if line is not None]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if a --fail-if holds, 2 for bad usage."""
    try:
        options = parse(ReportOptions, "report", __doc__ or "", argv)
        gates = [gate(text) for text in options.fail_if]
        runs = [summarise(folder) for folder in (options.run, options.run2) if folder is not None]
        before, after = (runs[0] if len(runs) == 2 else None), runs[-1]
        failed = failures(gates, before, after)
        console = tables.console()
        if before is None:
            one(after, options, console)
        else:
            two(before, after, options, console)
    except UsageError as error:
        return refuse(error)
    for line in failed:
        console.print(f"Failed: {line}", highlight=False, soft_wrap=True, markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    guarded(main)
