"""Train the network on its devices, test it, and measure it beside the same network on one device."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from math import isfinite
from typing import Any

from rich.console import Console

from splitnet import emulation, fitting, tables
from splitnet.comparison import WARM_UP, Training, compare
from splitnet.compiling import without_cuda_notice
from splitnet.errors import UsageError
from splitnet.fitting import DoesNotFitError
from splitnet.interrupts import Interrupts
from splitnet.job import Job, prepare
from splitnet.learning import Learner
from splitnet.measure.records import RunFolder, plain, read_records, read_run
from splitnet.measure.summary import heading
from splitnet.options import fail, guarded
from splitnet.parallel import links
from splitnet.parallel import ranks as processes
from splitnet.parallel.audit import UnknownCopyError
from splitnet.parallel.collective import LostRankError
from splitnet.parallel.links import UnsoundLinkError
from splitnet.party import Party
from splitnet.rank_comparison import compare_ranks
from splitnet.reporting import Report
from splitnet.resuming import check_resumes, read_options
from splitnet.training.data import batches, order
from splitnet.training.loop import DivergedError
from splitnet.training.sharing import Interrupted, Stop, UnevenReadError

ROUNDS = 5
"""Measured steps of each layout in the comparison."""

MEASURED_WITH = ("precision", "wire", "overlap", "compile", "machine")
"""Options that a comparison is of: where one of them changes and nothing is measured anew, it is put aside."""

TOGETHER = (DivergedError, UnevenReadError, UnsoundLinkError)
"""Failures that all processes of a job come to in the same moment."""

ALONE = (DoesNotFitError, UnknownCopyError, OSError)
"""Failures that may be those of one process."""


def measure(job: Job, report: Report, stop: Stop) -> None:
    """The comparison, printed and written."""
    options = job.options
    keyed_order = order(len(job.dataset.train), options.seed, 0)
    first = list(islice(batches(job.dataset.train, options.batch_size, keyed_order), WARM_UP + ROUNDS))
    whole = [batch for batch in first if len(batch.labels) == len(first[0].labels)]
    steps = [whole[i % len(whole)] for i in range(WARM_UP + ROUNDS)]  # small sets are gone through again
    how = (job.state, job.link, job.execution, options.update, job.view, job.init)
    training = Training(steps, options.optimizer, options.lr, options.seed, *how)
    comparison: dict[str, Any] = {}
    of_job = (job.architecture, job.placement, training, ROUNDS, job.limit)
    layouts = compare(*of_job) if job.ranks is None else compare_ranks(*of_job, stop)
    folder = report.folder
    snapshot = folder.path / "memory-snapshot.pickle" if folder and options.memory_snapshot else None
    with Console(quiet=not report.party.first).status("") as status, fitting.snapshot(snapshot):
        for text, found in layouts:
            status.update(text)
            comparison = plain(found) if found else comparison
    if folder is None:
        return
    for layout in comparison["layouts"]:
        if not all(map(isfinite, layout.get("losses", ()))):
            raise DivergedError(f"the comparison: the loss of {heading(layout)} is not finite; a smaller --lr may help")
    if report.emulation is not None:
        replicas = max((layout.get("replicas", 0) for layout in comparison["layouts"]), default=0) or 2
        paper = emulation.predictions(job, report.emulation.machine, steps[0], replicas)
        for layout in comparison["layouts"]:
            layout["predicted"] = paper.get(layout["layout"])
    folder.write("compare", comparison)
    report.console.print(tables.results(comparison))
    report.console.print(tables.notes(comparison, vars(options)), highlight=False)
    if comparison["layouts"][0].get("exchanged"):
        report.console.print(tables.exchanges(comparison["layouts"][0]))


def carry_out(job: Job, report: Report, interrupts: Interrupts) -> tuple[str, int]:
    """Train, test, measure. Returns how it ended and the exit status; what was recorded until then is told.

    KeyboardInterrupt comes through, after a last checkpoint.
    """
    try:
        try:
            audited = Learner(job, report, interrupts).learn()
        finally:
            report.trained()
        report.console.print(audited, highlight=False)
        if job.options.compare and job.options.steps != 0:
            measure(job, report, interrupts.stop)
    except SystemExit:  # rich, when nobody reads its output any more
        if report.party.several:
            with suppress(OSError):
                report.close("failed: the output was closed")
            report.party.failed(f"rank {report.party.rank}: its output was closed")
        return "failed: the output was closed", 1
    except TOGETHER as error:
        return _failed(str(error), report.party.first)
    except LostRankError as error:
        report.party.lost(error)
    except UsageError as error:
        if report.party.several:
            report.party.failed(f"rank {report.party.rank}: {error}")
        return f"failed: {error}", report.party.refuse(error)
    except ALONE as error:
        if report.party.several:
            report.party.failed(f"rank {report.party.rank}: {_first_line(error)}")
        return _failed(_what(error, report.folder))
    return "finished", 0


def close(report: Report, status: str, code: int) -> int:
    """End what is written, and leave pages. Returns the exit status, which is not 0 if that cannot be done."""
    try:
        report.close(status)
        report.leave()
    except KeyboardInterrupt as interrupt:
        with suppress(OSError):
            report.close(status)  # again, if this was broken off: the records say how it went
        return code or _status(interrupt)
    except (OSError, UsageError) as error:
        _failed(_what(error, report.folder), says=code != 1)  # one line is enough
        return code or 1
    finally:
        report.say_where()
    return code


def _what(error: Exception, folder: RunFolder | None) -> str:
    """What is told of it. A full disk does not say where it is."""
    if isinstance(error, OSError) and error.strerror and error.filename is None and folder is not None:
        return f"{folder.path}: {error.strerror}"
    return str(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _failed(why: str, says: bool = True) -> tuple[str, int]:
    if says:
        fail(why.splitlines()[0])
    return f"failed: {why}", 1


def _status(interrupt: KeyboardInterrupt) -> int:
    return interrupt.status if isinstance(interrupt, Interrupted) else 130


def check_links(job: Job) -> None:
    """UnsoundLinkError, in every process, if what towers hand each other would not arrive as it is."""
    batch = job.options.batch_size
    if job.ranks is not None:
        reports = links.check_ranks(job.ranks, job.architecture, batch, brief=True, link=job.link)
    else:
        reports = links.check_devices(job.placement.devices, job.architecture, batch, brief=True, link=job.link)
    links.refuse_unsound(reports)


def open_folder(job: Job, party: Party) -> RunFolder | None:
    """The run's folder, new or gone on with, where this process writes it. UsageError if it cannot be written."""
    if not party.first:
        return None
    options = job.options
    if job.checkpoint is None:
        folder = RunFolder.create(options.out, f"{options.preset}-{options.towers}x{job.placement.count}")
    else:
        check_resumes(job)
        assert options.resume is not None
        before = read_run(options.resume)["options"]
        folder = RunFolder.reopen(options.resume)
        try:
            if not options.compare and any(before.get(name) != getattr(options, name) for name in MEASURED_WITH):
                folder.set_aside("compare")
            folder.cut(job.checkpoint.step)
        except OSError as error:
            raise UsageError(f"--resume {options.resume}: cannot write there ({error.strerror})") from error
    if party.several:
        processes.remember("run folder", str(folder.path.absolute()))
    return folder


def start(argv: Sequence[str] | None, party: Party) -> Job:
    """All that comes before anything is written or told. UsageError for what a person got wrong."""
    options, checkpoint = read_options(__doc__ or "", argv, party)
    if options.compile:
        without_cuda_notice()
    job = prepare(options, party, checkpoint)
    emulation.check(options, job.placement)
    check_links(job)
    return job


def _earlier(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of a run that goes on: a checkpoint is never ahead of them."""
    return read_records(folder.path / "steps.jsonl", {"step": int})[0]


def open_report(job: Job, party: Party, console: Console) -> Report:
    """What is known before the training, written and told. OSError if it cannot be; a new folder goes again."""
    emulated = emulation.begin(job)
    folder = open_folder(job, party)
    try:
        earlier = _earlier(folder) if folder is not None and job.checkpoint is not None else []
        party.agree({})
        report = Report(job, folder, console, party, earlier, emulated)
        report.opening()
    except BaseException as error:
        if folder is not None and job.checkpoint is None:
            shutil.rmtree(folder.path, ignore_errors=True)  # it holds nothing yet but what it was about to be
        if isinstance(error, OSError):
            raise OSError(_what(error, folder)) from error
        raise
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if training failed (a loss that is not finite), 2 for bad usage, 130 when interrupted."""
    console = tables.console()
    try:
        company = Party()
    except ConnectionError as error:
        return _failed(str(error))[1]
    with Interrupts(company.several) as interrupts, company as party:
        if not party.first:
            console = Console(quiet=True)
        report = None
        try:
            job = start(argv, party)
            with interrupts.patient():  # so that a folder says what it is from its first moment
                report = open_report(job, party, console)
            status, code = carry_out(job, report, interrupts)
        except UsageError as error:
            return party.refuse(error)
        except UnsoundLinkError as error:
            return _failed(str(error), party.first)[1]
        except LostRankError as error:
            party.lost(error)
        except OSError as error:
            if party.several:
                party.failed(f"rank {party.rank}: {error}")
            return _failed(str(error))[1]
        except SystemExit as end:  # rich, when nobody reads its output any more; help ends with 0
            if party.several and end.code:
                party.failed(f"rank {party.rank}: its output was closed")
            raise
        except KeyboardInterrupt as interrupt:
            if report is None:
                return _status(interrupt)
            report.say_interrupted()
            status, code = "interrupted", _status(interrupt)
        code = close(report, status, code)
        party.wait_for_first("all")  # torchrun gives the last of a failed job half a minute, and pages may take longer
        return code


if __name__ == "__main__":
    guarded(main)
