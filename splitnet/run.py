"""Train the network on its devices, test it, and measure it beside the same network on one device."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from math import isfinite
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from splitnet import fitting, pages, tables
from splitnet.comparison import WARM_UP, Training, compare
from splitnet.errors import UsageError
from splitnet.fitting import DoesNotFitError, Room
from splitnet.job import Job, RunOptions, prepare
from splitnet.measure import scalars, traces
from splitnet.measure.lanes import UntiedError
from splitnet.measure.profiler import Profile
from splitnet.measure.records import RunFolder, environment, plain, timestamp
from splitnet.network.towers import SplitNet
from splitnet.options import guarded, parse, refuse
from splitnet.parallel import fake
from splitnet.parallel.audit import UnknownCopyError, audit
from splitnet.parallel.placement import describe
from splitnet.progress import progress_bar
from splitnet.training.data import batches, order
from splitnet.training.loop import DivergedError, Step, Test, evaluate, train
from splitnet.training.optimizer import make_optimizer

ROUNDS = 5
"""Measured steps of each layout in the comparison."""

SHORT_TEST = 1000
"""Test images for a run of less than an epoch."""


class Report:
    """Prints, and keeps what was printed about in the run's folder."""

    def __init__(self, job: Job, folder: RunFolder, console: Console) -> None:
        self.job, self.folder, self.console = job, folder, console
        self.tests: list[Test] = []
        self.steps: list[Step] = []
        self.profile: Profile | None = None
        self.filters: list[Tensor] = []
        self.summary: dict[str, Any] = {"status": "running", "options": job.options}

    def opening(self) -> None:
        job, architecture, batch = self.job, self.job.architecture, self.job.options.batch_size
        self.summary |= environment() | {
            "devices": describe(job.placement),
            "reason": job.placement.reason,
            "data": job.dataset.origin,
            "threads": torch.get_num_threads(),
            "parameters": architecture.parameters,
            "layers": [{"row": r.name, "parameters": r.parameters} for r in architecture.rows()],
            "bytes_exchanged_a_step": 0
            if job.placement.whole
            else architecture.bytes_exchanged(job.options.batch_size),
        }
        self.folder.write("run", self.summary)
        self.console.print(tables.devices(architecture, job.placement), highlight=False, soft_wrap=True)
        self.console.print(job.dataset.origin, highlight=False, soft_wrap=True)
        self.console.print(tables.layers(architecture, job.placement, batch))

    def add(self, record: Step | Test) -> None:
        if isinstance(record, Test):
            self.tests.append(record)
        else:
            self.steps.append(record)
        self.folder.append(type(record).__name__.lower(), record)

    def trained(self) -> None:
        """What training came to, for as far as it got."""
        if self.steps:
            images, seconds = sum(s.images for s in self.steps), sum(s.seconds for s in self.steps)
            first, last = (tables.number(step.loss) for step in (self.steps[0], self.steps[-1]))
            self.console.print(
                f"Trained {_counted(len(self.steps), 'step')}, {_counted(images, 'image')} in {seconds:,.0f} s"
                f" ({images / seconds:,.1f} images/s);"
                f" loss {first} at the first, {last} at the last.",
                highlight=False,
            )
        if self.tests:
            self.console.print(tables.tests(map(plain, self.tests), plain(self.steps)))
        skipped = self.job.dataset.skipped
        if skipped:
            path, why = next(iter(skipped.items()))
            self.console.print(
                f"Skipped {_counted(len(skipped), 'broken image')}, the first {path}: {why}",
                highlight=False,
            )

    def close(self, status: str) -> None:
        self.summary |= {"status": status, "ended": timestamp(), "steps": len(self.steps)}
        self.summary |= {"skipped": self.job.dataset.skipped}
        self.folder.write("run", self.summary)
        self.folder.close()
        try:
            self.leave()
        finally:
            self.console.print(f"Run folder: {self.folder.path}", highlight=False, soft_wrap=True)

    def leave(self) -> None:
        """What others look at: the trace, the pages, and a folder for TensorBoard."""
        try:
            if self.profile is not None:
                traces.write(self.profile, self.folder.path)
        except UntiedError as error:
            self.console.print(f"No trace: {error}", highlight=False)
        records = [{"kind": type(r).__name__.lower()} | plain(r) for r in (*self.steps, *self.tests)]
        first = self.job.architecture.layers[0].name
        towers = self.job.architecture.towers
        shares = [share for held in self.filters for share in held.chunk(towers // len(self.filters))]
        filters = {f"{first}/tower {tower}": share for tower, share in enumerate(shares)}
        pages.write_pages(self.folder.path)
        if not pages.has_page():
            self.console.print(pages.NO_PAGE)
        text = (self.folder.path / "report.md").read_text(encoding="utf-8")
        scalars.write(self.folder.path / "tensorboard", records, filters, {"report": text})


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def learn(job: Job, report: Report) -> str:
    """Train and test, a record at a time, under a progress bar. Returns what the audit of all that crossed says."""
    fake.clear_copies()  # what this process did before is not audited
    with Room(job.placement.devices, job.limit) as room:
        net = job.network()
        optimizer = make_optimizer(net.parameters(), job.options.optimizer, job.options.lr)
        room.watch(net, optimizer)
        learn_from(job, report, net, optimizer)
    tested, learnt = sum(t.images for t in report.tests), sum(s.images for s in report.steps)
    found = audit(job.architecture, job.placement, net.ledger.transfers(), learnt + tested, learnt)
    report.filters = [tower.get_parameter(f"{net.rows[0].name}.weight").detach().cpu() for tower in net.hosted]
    return f"In {_counted(len(report.steps), 'step')} and {_counted(tested, 'test image')}, {found}"


def learn_from(job: Job, report: Report, net: SplitNet, optimizer: torch.optim.Optimizer) -> None:
    """Every step and test of the run, recorded when it is over."""
    options = job.options
    split, size = job.dataset.train, options.batch_size
    a_pass = -(-len(split) // size)
    limits = options.limits
    total = limits["steps"] if limits["epochs"] is None else limits["epochs"] * a_pass
    assert total is not None
    tested_at = None
    if options.profile and total:
        report.profile = Profile(job.placement.devices, min(total, a_pass))
    with progress_bar(Console(), total) as show, report.profile or nullcontext():
        for record in train(net, split, optimizer, batch_size=size, seed=options.seed, **limits):
            report.add(record)
            show(record)
            if report.profile is not None:
                report.profile.step()
            if record.ends_epoch:
                if report.profile is not None:
                    report.profile.finish()  # a test is no part of a step
                tested_at = record.step
                report.add(
                    evaluate(net, job.dataset.test, batch_size=size, step=record.step + 1, epoch=record.epoch + 1)
                )
    if not report.steps or report.steps[-1].step != tested_at:
        few = SHORT_TEST if report.steps and tested_at is None else None
        done = len(report.steps)
        report.add(evaluate(net, job.dataset.test, batch_size=size, step=done, epoch=-(-done // a_pass), images=few))


def measure(job: Job, report: Report) -> None:
    """The comparison, printed and written."""
    options = job.options
    keyed_order = order(len(job.dataset.train), options.seed, 0)
    first = list(islice(batches(job.dataset.train, options.batch_size, keyed_order), WARM_UP + ROUNDS))
    whole = [batch for batch in first if len(batch.labels) == len(first[0].labels)]
    steps = [whole[i % len(whole)] for i in range(WARM_UP + ROUNDS)]  # small sets are gone through again
    training = Training(steps, options.optimizer, options.lr, options.seed, job.state)
    comparison: dict[str, Any] = {}
    snapshot = report.folder.path / "memory-snapshot.pickle" if options.memory_snapshot else None
    with Console().status("") as status, fitting.snapshot(snapshot):
        for text, found in compare(job.architecture, job.placement, training, ROUNDS, job.limit):
            status.update(text)
            comparison = plain(found) if found else comparison
    for layout in comparison["layouts"]:
        if not all(map(isfinite, layout.get("losses", ()))):
            raise DivergedError(
                f"the comparison: the loss of {layout['layout']} is not finite; a smaller --lr may help"
            )
    report.folder.write("compare", comparison)
    report.console.print(tables.results(comparison))
    report.console.print(tables.notes(comparison), highlight=False)
    if comparison["layouts"][0].get("exchanged"):
        report.console.print(tables.exchanges(comparison["layouts"][0]))


def carry_out(job: Job, report: Report) -> tuple[str, int]:
    """Train, test, measure. Returns how it ended and the exit status; what was recorded until then is told."""
    try:
        report.opening()
        try:
            audited = learn(job, report)
        finally:
            report.trained()
        report.console.print(audited, highlight=False)
        if job.options.compare and job.options.steps != 0:
            measure(job, report)
    except KeyboardInterrupt:
        report.console.print("Interrupted: what was recorded is kept.")
        return "interrupted", 130
    except SystemExit:  # rich, when nobody reads its output any more
        return "failed: the output was closed", 1
    except UsageError as error:
        return f"failed: {error}", refuse(error)
    except (DivergedError, DoesNotFitError, UnknownCopyError, OSError) as error:
        return _failed(str(error))
    return "finished", 0


def _failed(why: str) -> tuple[str, int]:
    sys.stderr.write(f"splitnet: error: {why.splitlines()[0]}\n")
    return f"failed: {why}", 1


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if training failed (a loss that is not finite), 2 for bad usage, 130 when interrupted."""
    console = tables.console()
    try:
        options = parse(RunOptions, "run", __doc__ or "", argv)
        job = prepare(options)
        folder = RunFolder.create(options.out, f"{options.preset}-{options.towers}x{len(job.placement.devices)}")
    except UsageError as error:
        return refuse(error)
    except KeyboardInterrupt:
        return 130
    report = Report(job, folder, console)
    status, code = carry_out(job, report)
    try:
        report.close(status)
    except (OSError, UsageError) as error:  # pages name the file that cannot be written
        return _failed(str(error))[1]
    return code


if __name__ == "__main__":
    guarded(main)
