"""What a run tells, on the terminal and in its folder."""

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from splitnet import pages, recipes, tables
from splitnet.emulation import Emulation
from splitnet.errors import UsageError
from splitnet.job import Job, has_noise
from splitnet.measure import scalars, traces
from splitnet.measure.lanes import UntiedError
from splitnet.measure.manner import computed, crossed, emulated_as
from splitnet.measure.metrics import settled
from splitnet.measure.profiler import Profile
from splitnet.measure.ranks import RankTrace, write_ranks
from splitnet.measure.records import RunFolder, environment, plain, read_learned, read_run, timestamp
from splitnet.measure.summary import named
from splitnet.parallel.capabilities import is_slow
from splitnet.parallel.placement import describe
from splitnet.party import Party
from splitnet.training.checkpoint import Checkpoints
from splitnet.training.loop import Step, Test
from splitnet.training.optimizer import Kind

KINDS: Mapping[Kind, str] = {"first weight": "the first weights", "weights": "other weights", "biases": "biases"}

SLOW = "this CPU has no instructions for it (avx512_bf16, amx) and computes it slower than float32."


class Report:
    """Prints, and keeps what was printed about in the run's folder; where another process does that, keeps it only.

    `earlier` are the records of a run that goes on.
    """

    def __init__(
        self,
        job: Job,
        folder: RunFolder | None,
        console: Console,
        party: Party,
        earlier: list[dict[str, Any]],
        emulation: Emulation | None = None,
    ) -> None:
        self.job, self.folder, self.console, self.party, self.earlier = job, folder, console, party, earlier
        self.emulation = emulation
        self.tests: list[Test] = []
        self.steps: list[Step] = []
        self.profile: Profile | None = None
        self.rank_traces: list[RankTrace | None] = []
        """Of a job's processes, once all have been collected."""
        self.filters: list[Tensor] = []
        self.summary: dict[str, Any] = {"status": "running", "options": job.options}

    def opening(self) -> None:
        job, architecture, batch = self.job, self.job.architecture, self.job.options.batch_size
        devices = self.party.share(describe(job.placement), "describing devices")
        self.summary |= environment() | {
            "devices": [device for own in devices for device in own],
            "reason": job.placement.reason,
            "data": job.dataset.origin,
            "classes": list(job.dataset.classes),
            "threads": torch.get_num_threads(),
            "allocator": job.allocator,
            "emulated": None if self.emulation is None else self.emulation.as_dict(),
            "parameters": architecture.parameters,
            "layers": [{"row": r.name, "parameters": r.parameters} for r in architecture.rows()],
            "bytes_exchanged_a_step": 0
            if job.placement.whole
            else architecture.bytes_exchanged(batch, itemsize=job.execution.itemsize),
            "resumed_at": None if job.checkpoint is None else job.checkpoint.step,
        }
        before = self._saved_on()
        self._write()
        self.console.print(tables.devices(architecture, job.placement, self._how()), highlight=False, soft_wrap=True)
        few = 0 < job.view.measured < len(job.dataset.train)
        of_few = f"The mean image, and colours, are of {job.view.measured:,} of them." * few
        for line in filter(None, (job.dataset.origin, of_few, job.other_names, self._begins())):
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)
        if job.checkpoint is not None:
            at = f"step {job.checkpoint.step:,}, epoch {job.checkpoint.epoch:,}"
            self.console.print(f"Resumes {job.options.resume} at {at}{before}.", highlight=False, soft_wrap=True)
        if self.folder is not None and job.options.save_every:
            every = (
                f"Every {counted(job.options.save_every, 'step')} a checkpoint in {self.folder.path / 'checkpoints'}"
            )
            self.console.print(every, highlight=False, soft_wrap=True)
        if not job.options.save_every:
            self.console.print("Weights are not kept (--save-every N keeps them).", highlight=False)
        if self.emulation is not None:
            self.console.print(str(self.emulation), highlight=False, soft_wrap=True)
        slow = [device for device in job.placement.devices if is_slow(job.execution.precision, device)]
        if slow:
            self.console.print(f"{job.options.precision}: {SLOW}", highlight=False, soft_wrap=True)
        self.console.print(tables.layers(architecture, job.placement, batch, job.execution.itemsize))

    def _begins(self) -> str:
        """The recipe in a line, which names weights that were given; without one, those."""
        options = self.job.options
        if options.recipe is not None:
            return recipes.told(options, has_noise(options, self.job.dataset))
        given = options.weights is not None and self.job.checkpoint is None
        return f"Weights from {options.weights}." * given

    def _how(self) -> list[str]:
        """Options that change how a step is computed, or what clocks stand for."""
        options = vars(self.job.options)
        name = emulated_as(self.summary)
        return [*computed(options), *crossed(options), *[f"emulated as {name}"] * bool(name)]

    def _saved_on(self) -> str:
        """Where a run that goes on was before, if that was elsewhere."""
        if self.folder is None or self.job.checkpoint is None:
            return ""
        names = named([entry["device"] for entry in read_run(self.folder.path)["devices"]])
        now = named([entry["device"] for entry in self.summary["devices"]])
        return "" if names == now else f"; it was on {', '.join(names)}"

    def add(self, record: Step | Test) -> None:
        if isinstance(record, Test):
            self.tests.append(record)
        else:
            self.steps.append(record)
        if self.folder is not None:
            self.folder.append(type(record).__name__.lower(), record)

    def say_rates(self, epoch: int, rates: Mapping[Kind, float]) -> None:
        """That they are others after so many epochs."""
        of_kinds = ", ".join(f"{rate:g} of {KINDS[kind]}" for kind, rate in rates.items())
        told = of_kinds if len(rates) > 1 else f"{rates['weights']:g}"
        self.console.print(f"After epoch {epoch:,}: learning rate {told}.", highlight=False, soft_wrap=True)

    def records(self, kind: type[Step] | type[Test]) -> list[dict[str, Any]]:
        """All of the run, in order, as in steps.jsonl."""
        new: list[Step] | list[Test] = self.steps if kind is Step else self.tests
        name = kind.__name__.lower()
        return [r for r in self.earlier if r["kind"] == name] + [{"kind": name} | plain(record) for record in new]

    def trained(self) -> None:
        """What training came to, for as far as it got."""
        if self.steps:
            images, seconds = sum(s.images for s in self.steps), sum(s.seconds for s in self.steps)
            timed = settled([plain(step) for step in self.steps])
            left = len(self.steps) - len(timed)
            when = {0: "in it", 1: "after the first step"}.get(left, f"without the {left} steps that warm up")
            speed = sum(s["images"] for s in timed) / sum(s["seconds"] for s in timed)
            waited = 100 * sum(s["waited"] for s in timed) / sum(s["seconds"] for s in timed)
            first, last = (tables.number(step.loss) for step in (self.steps[0], self.steps[-1]))
            self.console.print(
                f"Trained {counted(len(self.steps), 'step')}, {counted(images, 'image')} in {seconds:,.0f} s"
                f" ({speed:,.1f} images/s {when}, {waited:.1f} % of it waiting for images);"
                f" loss {first} at the first, {last} at the last.",
                highlight=False,
            )
        if self.tests:
            self.console.print(tables.tests(self.records(Test), self.records(Step)))
        skipped = self.job.dataset.skipped
        if skipped:
            path, why = next(iter(skipped.items()))
            self.console.print(
                f"Skipped {counted(len(skipped), 'broken image')}, the first {path}: {why}",
                highlight=False,
            )

    def close(self, status: str) -> None:
        """Write how it ended, and all records. OSError if there is no room."""
        if self.folder is None:
            return
        self.summary |= {"status": status, "ended": timestamp(), "steps": len(self.records(Step))}
        self.summary |= {"skipped": self.job.dataset.skipped}
        try:
            self._write()
        finally:
            self.folder.close()

    def leave(self) -> None:
        """Write what others look at. OSError, UsageError if it cannot be written."""
        if self.folder is not None:
            self._leave(self.folder)

    def say_interrupted(self) -> None:
        """What is kept, and how to go on."""
        self.console.print("Interrupted: what was recorded is kept.")
        if self.folder is None:
            return
        saved = Checkpoints(self.folder.path).steps()
        steps = len(self.records(Step))
        if saved:
            of = f" of {steps:,}" * (saved[-1] < steps)
            go_on = f"Saved at step {saved[-1]:,}{of}; to go on: --resume {self.folder.path}"
            self.console.print(go_on, highlight=False, soft_wrap=True)
        elif self.job.options.save_every and steps:
            self.console.print("There was no time for a checkpoint: weights are lost.", highlight=False)

    def say_where(self) -> None:
        if self.folder is not None:
            self.console.print(f"Run folder: {self.folder.path}", highlight=False, soft_wrap=True)

    def _write(self) -> None:
        if self.folder is not None:
            self.folder.write("run", self.summary)

    def _leave(self, folder: RunFolder) -> None:
        """What others look at: the trace, the pages, and a folder for TensorBoard."""
        try:
            if self.rank_traces:
                write_ranks(self.rank_traces, folder.path)
            elif self.profile is not None and not self.party.several:
                traces.write(self.profile, folder.path)
        except UntiedError as error:
            self.console.print(f"No trace: {error}", highlight=False)
        first = self.job.architecture.layers[0].name
        towers = self.job.architecture.towers
        shares = [share for held in self.filters for share in held.chunk(towers // len(self.filters))]
        filters = {f"{first}/tower {tower}": share for tower, share in enumerate(shares)}
        pages.write_pages(folder.path)
        if not pages.has_page():
            self.console.print(pages.NO_PAGE)
        text = (folder.path / "report.md").read_text(encoding="utf-8")
        records = [*self.records(Step), *self.records(Test)]
        board = folder.path / "tensorboard"
        before = list(board.glob("events.out.tfevents.*"))
        scalars.write(board, records, filters, {"report": text}, self._learned(folder))
        for path in before:  # of the run until it was resumed: TensorBoard would draw those steps twice
            path.unlink()

    def _learned(self, folder: RunFolder) -> dict[str, Any] | None:
        """What was looked at; None if nothing was."""
        try:
            return read_learned(folder.path)
        except UsageError:
            return None


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
