"""An experiment carried out: trials in alternation, seed by seed, each kept at once; then its verdicts and its page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from results_file import RESULTS, ResultsFile, counted, put
from results_page import page
from setting import Options, Setting
from trials import Look, Outcome, Variant, trained
from verdicts import Claim

from splitnet import allocator
from splitnet.measure.records import plain
from splitnet.parallel.capabilities import check_execution

Outcomes = Mapping[str, Mapping[int, Outcome]]
"""Variant -> seed -> outcome."""


@dataclass(frozen=True, slots=True)
class Table:
    """Words in the first column, figures in the others."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> list[str]:
        """As text."""
        every = [self.headings, *self.rows]
        first, *widths = (max(len(row[i]) for row in every) for i in range(len(self.headings)))
        cells = (
            (f"{row[0]:{first}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths, strict=True))) for row in every
        )
        return ["  ".join(row).rstrip() for row in cells]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Variants, and what is claimed of them."""

    name: str
    """Of its script, and of its results."""
    text: str
    """The script's docstring."""
    variants: Sequence[Variant]
    claims: Sequence[Claim]
    look: Look | None = None
    more: Callable[[Outcomes], Table] | None = None
    """A table beside that of losses and accuracies."""
    says: str = ""
    """What else a reader of the results must know."""


def prepare(threads: int | None) -> None:
    """For the start of a command."""
    allocator.keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)


def open_results(name: str, options: Options) -> ResultsFile:
    path = (options.out or RESULTS) / f"{name}{'-full' * options.full}.json"
    file = ResultsFile.open(path, name, options.fresh)
    file.content["full"] = options.full
    return file


def conduct(experiment: Experiment, options: Options, setting: Setting, seeds: Iterable[int] | None = None) -> None:
    """Train what is not trained yet, print what it came to, and write the results and their page."""
    with open_results(experiment.name, options) as file:
        begin(file, experiment, setting)
        run_trials(file, experiment, setting, range(setting.size.seeds) if seeds is None else seeds)
        conclude(file, experiment, setting)


def begin(file: ResultsFile, experiment: Experiment, setting: Setting) -> None:
    for variant in experiment.variants:  # devices that are not there are refused before anything is told
        check_execution(variant.execution, setting.placed(variant.network).devices)
    variants = {variant.name: variant.described(setting.size) for variant in experiment.variants}
    file.begin(setting.described(), variants)
    print(f"{experiment.name}: {setting.size}; {setting.data.origin}", flush=True)
    if file.trials:
        print(f"{counted(file.trials)} in {file.path.name}; what is not there is trained", flush=True)


def run_trials(file: ResultsFile, experiment: Experiment, setting: Setting, seeds: Iterable[int]) -> None:
    """A B C from one seed, A B C from the next."""
    done = file.outcomes()
    for seed in seeds:
        for variant in experiment.variants:
            if seed in done.get(variant.name, {}):
                continue
            found = trained(variant, seed, setting, experiment.look)
            file.add(variant.name, seed, found)
            last = found.last
            ended = f" ({found.diverged})" if found.diverged else ""
            told = f"loss {last.loss:.4f}, training {last.seen_accuracy:.4f}, test {last.test_accuracy:.4f}"
            print(f"  seed {seed}, {variant.name}: {told}, {found.seconds:.3g} s{ended}", flush=True)


def conclude(file: ResultsFile, experiment: Experiment, setting: Setting) -> None:
    """Print and keep what all trials say."""
    outcomes = file.outcomes(judged=True)
    judged = [claim.judge(outcomes) for claim in experiment.claims]
    judgements = [judgement for judgement in judged if judgement is not None]
    tables = [table_of(experiment.variants, outcomes)]
    tables += [experiment.more(outcomes)] if experiment.more else []
    for table in tables:
        print("\n".join(table.lines()))
    print("\n".join(judgement.line for judgement in judgements))
    records = [judgement.record() for judgement in judgements]
    write(file, experiment.text, records, tables, str(setting.size), experiment.says)


def write(
    file: ResultsFile, text: str, records: Sequence[dict[str, Any]], tables: Sequence[Table], size: str, says: str = ""
) -> None:
    """The end of a results' file, and its page."""
    if says:
        print(says)
    parts = {"claims": list(records), "tables": list(tables), "text": text, "size": size, "says": says}
    drawn = page(file.content | plain(parts | {"command": file.made_by}))  # before anything is written
    file.conclude(**parts, command=file.made_by)
    put(file.path.with_suffix(".html"), drawn)
    print(f"{file.path.name} and {file.path.stem}.html are in {file.path.parent.resolve()}")


def table_of(variants: Sequence[Variant], outcomes: Outcomes) -> Table:
    """Means over the seeds of each variant."""
    headings = ("", "n", "parameters", "bytes a step", "loss", "training, as in a test", "test", "best test", "s")
    rows = []
    for variant in variants:
        found = list(outcomes.get(variant.name, {}).values())
        if not found:
            continue
        means = (
            fmean(o.last.loss for o in found),
            fmean(o.last.seen_accuracy for o in found),
            fmean(o.last.test_accuracy for o in found),
            fmean(max(e.test_accuracy for e in o.epochs) for o in found),
        )
        sizes = (f"{len(found)}", f"{variant.table.parameters:,}", f"{found[0].bytes:,}")
        seconds = f"{fmean(o.seconds for o in found):.3g}"
        rows.append((variant.name, *sizes, *(f"{mean:.4f}" for mean in means), seconds))
    return Table("Means over seeds: the last epoch's, and the best test accuracy", headings, rows)
