"""The training of a run: every step and test recorded, saved now and then, and audited at the end."""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.console import Console

from splitnet.fitting import Room
from splitnet.interrupts import Interrupts
from splitnet.job import Job
from splitnet.looking import Look
from splitnet.measure.profiler import Profile
from splitnet.measure.ranks import RankTrace, clock_offset, rank_trace
from splitnet.parallel import fake, gradients
from splitnet.parallel.audit import audit
from splitnet.parallel.exchange import Ledger
from splitnet.parallel.ranks import Ranks
from splitnet.progress import progress_bar
from splitnet.reporting import Report, counted
from splitnet.training.checkpoint import Checkpoint, Checkpoints
from splitnet.training.loop import Position, Step, Test, evaluate, train
from splitnet.training.optimizer import Kind, rates_of, set_rates
from splitnet.training.optimizer_state import join_shares, load_optimizer, schedule_of, shares_of
from splitnet.training.sharing import Interrupted, Stop

SHORT_TEST = 1000
"""Test images for a run of less than an epoch."""

SHORT_LOOK = {"tested": 128, "training": 256}
"""And images that it is looked at with."""


class Learner:
    """A network, its optimizer, and where it stands; `learn` takes it to the end of the job."""

    def __init__(self, job: Job, report: Report, interrupts: Interrupts) -> None:
        self.job, self.report, self.interrupts = job, report, interrupts
        self.party = report.party
        self.gradients = Ledger()
        """What replicas of a tower handed each other."""
        self.position = Position()
        self.saved, self.tried = -1, 0
        """Steps of the last checkpoint, and of the last attempt to write one: none is written before the first step."""
        self.whole = True
        """Whether no step is under way, so that weights and position belong together."""
        tests = (record["step"] for record in report.earlier if record["kind"] == "test")
        self.tested = max(tests, default=-1)

    def learn(self) -> str:
        """Train and test, a record at a time, under a progress bar. Returns what the audit of all that crossed says.

        Interrupted, after a last checkpoint, if a signal asked for the end.
        """
        job, report = self.job, self.report
        fake.clear_copies()  # what this process did before is not audited
        with Room(job.placement.devices, job.limit) as room:
            self._make()
            room.watch(self.net, self.optimizer)
            self._train_and_test()
        for skipped in self.party.share(job.dataset.skipped, "broken images"):
            job.dataset.skipped.update(skipped)
        audited = self._audit()
        if job.options.look:
            self._look(self.look.finish)
        report.filters = self._filters()
        if job.ranks is not None and report.profile is not None:
            report.rank_traces = self._traces(job.ranks, report.profile)
        return audited

    def _make(self) -> None:
        options = self.job.options
        self.net = self.job.network()
        self.optimizer = options.update.start(self.net)
        checkpoint = self.party.from_first(self.job.checkpoint, "handing out the checkpoint")
        if checkpoint is not None:
            self._resume(checkpoint)
        self.errors = self.party.from_first(self._errors(), "test errors")
        self.tested = self.party.from_first(self.tested, "the last test")
        self._set_rates()
        size = self.job.architecture.size
        pixels = partial(self.job.view.centre, size=size)
        fewer = SHORT_LOOK if self._total < self._a_pass else {}
        self.look = Look(self.job.architecture, self.job.dataset, self.report.folder, pixels, **fewer)
        self.model = gradients.replicated(self.net, self.job.ranks, self.gradients)

    def _resume(self, checkpoint: Checkpoint) -> None:
        self.net.load_whole_state_dict(checkpoint.weights)
        load_optimizer(self.net, self.optimizer, checkpoint)
        self.position = Position(checkpoint.step, checkpoint.epoch, checkpoint.batch)
        self.saved = self.tried = checkpoint.step

    def _errors(self) -> list[float]:
        """Test errors at the ends of epochs, so far as this process has records."""
        ends = {record["step"] + 1 for record in self.report.records(Step) if record["ends_epoch"]}
        return [1 - record["accuracy"] for record in self.report.records(Test) if record["step"] in ends]

    def _set_rates(self) -> None:
        """Those of the epoch that begins or goes on."""
        before = rates_of(self.optimizer)
        set_rates(self.optimizer, self._rates(self.position.epoch))
        if (now := rates_of(self.optimizer)) != before:
            self.report.say_rates(self.position.epoch, now)

    def _rates(self, epoch: int) -> dict[Kind, float]:
        options = self.job.options
        return options.schedule.rates(options.update, epoch, self.errors)

    def _train_and_test(self) -> None:
        ahead = self._total - self.position.step
        if self.job.options.profile and ahead > 0:
            profiled = min(ahead, self._a_pass - self.position.batch)
            self.report.profile = Profile(self.job.placement.devices, profiled)
        try:
            if ahead > 0 and not self.position.step and self.job.options.look:
                self._look(self.look.follow)  # what independent weights have, so that it can be seen what was learned
            if self.position.step and not self.position.batch:
                self._test()  # the run may have been stopped between the end of an epoch and its test
                self._set_rates()
            with self.interrupts.patient() as stop:
                self._train(stop)
                if stop.agreed:
                    raise Interrupted(stop.agreed)
                self._save()
            self._test(SHORT_TEST if self.position.epoch == 0 and self.position.step else None)
        except KeyboardInterrupt:
            if self.whole:
                self._save()
            raise

    def _train(self, stop: Stop) -> None:
        options, report = self.job.options, self.report
        records = train(
            self.net,
            self.job.dataset.train,
            self.optimizer,
            batch_size=options.batch_size,
            seed=options.seed,
            **options.limits,
            start=self.position,
            model=self.model,
            ranks=self.job.ranks,
            stop=stop,
            view=self.job.view,
            reshuffle=options.shuffle == "epochs",
        )
        bar = progress_bar(Console(quiet=not self.party.first), self._total, self.position.step, options.compile)
        with closing(records), bar as show, report.profile or nullcontext():  # no thread reads on after an error
            for record in records:
                report.add(record)  # first: a checkpoint is never ahead of the records
                self.position, self.whole = record.after, True
                show(record)
                self._end_step(options.save_every is not None and self.position.step % options.save_every == 0)
                if record.ends_epoch and not stop.agreed:
                    if report.profile is not None:
                        report.profile.finish()  # a test is no part of a step
                    self._test()
                    self._set_rates()
                self.whole = False
        self.whole = True

    def _end_step(self, due: bool) -> None:
        """Save if it is due, outside of the steps that are profiled: these end early if need be."""
        profile = self.report.profile
        recording = profile is not None and profile.recording
        if due and not recording:
            self._save()
        if profile is not None:
            profile.step()
        if due and recording:
            if profile is not None:
                profile.finish()
            self._save()

    @property
    def _a_pass(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.job.dataset.train) // self.job.options.batch_size)

    @property
    def _total(self) -> int:
        """Steps in all."""
        limits = self.job.options.limits
        return limits["steps"] if limits["steps"] is not None else (limits["epochs"] or 0) * self._a_pass

    def _test(self, images: int | None = None) -> None:
        position, options = self.position, self.job.options
        if self.tested == position.step:
            return
        begun = position.epoch + bool(position.batch)
        with self.interrupts.impatient():
            test = evaluate(
                self.net,
                self.job.dataset.test,
                batch_size=options.batch_size,
                step=position.step,
                epoch=begun,
                images=images,
                ranks=self.job.ranks,
                stop=self.interrupts.stop,
                view=self.job.view,
            )
        if position.step:
            of_epoch = self._rates(begun - 1)
            test = replace(test, rates={kind: of_epoch[kind] for kind in rates_of(self.optimizer)})
        self.report.add(test)
        if options.look:
            self._look(self.look.follow, begun)
        if not position.batch and position.step:
            self.errors.append(1 - test.accuracy)
        self.tested = position.step

    def _look(self, how: Callable[..., None], epoch: int | None = None) -> None:
        """At the weights, on the CPU of the first process, which the others wait for."""
        state, position = self.net.whole_state_dict(), self.position
        with self.interrupts.impatient():
            how(state, step=position.step, epoch=position.epoch if epoch is None else epoch)
        self.party.wait_for_first(f"looking at step {position.step}")

    def _save(self) -> None:
        """A checkpoint, if the run has any and this one is not there yet. The disk may be full: the last one stands."""
        options, step = self.job.options, self.position.step
        if options.save_every is None or self.tried == step:
            return
        self.tried = step
        weights = self.net.whole_state_dict()
        shares = self.net.exchange.collect(shares_of(self.net, self.optimizer))
        if self.party.first:
            assert shares is not None
            assert self.report.folder is not None
            position = {"step": step, "epoch": self.position.epoch, "batch": self.position.batch}
            state = join_shares(self.job.architecture, shares)
            schedule = schedule_of(self.optimizer)
            checkpoint = Checkpoint(
                **position, settings=self.job.settings, schedule=schedule, weights=weights, optimizer=state
            )
            try:
                if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
                    raise OSError("weights that are not finite")  # reading would refuse it
                Checkpoints(self.report.folder.path).save(checkpoint)
                self.saved = step
            except OSError as error:
                stands = f"that of step {self.saved:,} stands" if self.saved >= 0 else "there is none yet"
                why = error.strerror or str(error)
                self.report.console.print(f"No checkpoint of step {step:,} ({why}); {stands}.", highlight=False)
        self.party.wait_for_first(f"saving step {step}")

    def _traces(self, ranks: Ranks, profile: Profile) -> list[RankTrace | None]:
        """What every rank recorded, where rank 0 is; the clocks of their hosts are compared for it."""
        what = "collecting traces"
        clock = clock_offset(lambda: ranks.meet(what), lambda own: ranks.objects(own, what), ranks.rank)
        own = rank_trace(profile, clock, rank=ranks.rank, tower=ranks.tower, replica=ranks.replica)
        return ranks.to_first(own, what)

    def _filters(self) -> list[torch.Tensor]:
        """The first row's weights, of every tower in order, where they are wanted."""
        first = f"{self.net.rows[0].name}.weight"
        shares: Any = self.net.exchange.collect([{first: tower.get_parameter(first)} for tower in self.net.hosted])
        return [share[first].detach().cpu() for share in shares or ()]

    def _audit(self) -> str:
        """What crossed, held against the table."""
        report, job = self.report, self.job
        learnt = sum(s.images + s.padding for s in report.steps)
        tested = sum((t.images + t.padding) * t.views for t in report.tests)
        everybody = Ledger()
        for own in self.party.share(self.net.ledger.transfers(), "the audit"):
            everybody.add(own)
        itemsize = job.execution.itemsize
        exchanged = everybody.transfers()
        found = audit(job.architecture, job.placement, exchanged, learnt + tested, learnt, job.link, itemsize)
        images = sum(t.images for t in report.tests)
        told = f"In {counted(len(report.steps), 'step')} and {counted(images, 'test image')}, {found}"
        if job.ranks is None or job.ranks.replicas == 1:
            return told
        between = sum(t.bytes for own in self.party.share(self.gradients.transfers(), "the audit") for t in own)
        gradients.check(job.architecture.parameters, job.ranks.replicas, len(report.steps), between)
        return (
            f"{told}\nBetween {job.ranks.replicas} replicas, {between:,} bytes of gradients: as derived, to the byte."
        )
