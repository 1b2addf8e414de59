"""Going on with a run: its last checkpoint, and the options that it was started with."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitnet import recipes
from splitnet.errors import UsageError
from splitnet.job import Job, RunOptions
from splitnet.measure.records import read_run
from splitnet.options import given, parse
from splitnet.parallel import ranks as processes
from splitnet.party import Party, facts
from splitnet.training.checkpoint import Checkpoint, Checkpoints, check_fits

TAKEN = (
    *("preset", "towers", "crosses", "data", "data_dir", "class_names", "batch_size", "seed", "save_every"),
    *recipes.FIELDS,
    *("precision", "wire", "overlap", "keep_memory", "workers", "compare", "profile", "look"),
)
"""Options of the run that hold where the command line says nothing; and where training ends. What devices must have
(compile, machine, link, memory_limit) is said anew, as devices are."""

NAMED = {"mean_image": "a mean image and colours of hash"}
"""Settings that are no options."""

OWN = {"out", "data_dir", "class_names", "threads", "resume", "weights"}
"""Options that processes of one job may differ in: paths on their hosts, cores."""


def read_options(description: str, argv: Sequence[str] | None, party: Party) -> tuple[RunOptions, Checkpoint | None]:
    """The options of this run, in agreement with the others, and the checkpoint to go on from, which rank 0 has.

    After torchrun has restarted a job, it goes on in the folder of its last attempt without being told.
    """
    found = given(RunOptions, argv, "run", description)
    said = set(found)
    of_recipe = recipes.defaults(found.get("recipe"), said, found.get("optimizer"))
    options = parse(RunOptions, "run", description, argv, of_recipe)
    if options.resume is not None and options.weights is not None:  # a restarted job may have both
        raise UsageError(f"--weights {options.weights}: --resume {options.resume} has its own; give one of them")
    for name in ("weights", "resume"):
        if "init" in said and name in said:
            raise UsageError(f"--init {options.init}: --{name} {getattr(options, name)} has weights; give one of them")
    if {"out", "resume"} <= said:
        raise UsageError(f"--out {options.out}: --resume {options.resume} goes on in its own folder")
    party.watch(options.timeout)
    checkpoint, defaults = None, {}
    if party.first:
        resumed = options.resume or _last_attempt(party)
        if resumed is not None:
            checkpoint = Checkpoints(resumed).last()
            defaults = {"resume": str(resumed)} | _defaults(resumed, said)
    [defaults, *_] = party.agree(facts(options, OWN), defaults)
    if not defaults:
        return options, checkpoint
    try:
        return parse(RunOptions, "run", description, argv, defaults), checkpoint
    except UsageError as error:  # what was said has been read before, so it is of the run's own
        raise UsageError(f"{Path(defaults['resume']) / 'run.json'}: {error}") from error


def _defaults(run: Path, said: set[str]) -> dict[str, Any]:
    """The run's options for all that was not said, as a command line would have them."""
    options = read_run(run)["options"]
    ends = () if said & {"steps", "epochs"} else ("steps", "epochs")
    wanted = (name for name in (*TAKEN, *ends) if name not in said)
    found = {name: value for name in wanted if (value := options.get(name)) is not None}
    return {name: value if isinstance(value, bool) else str(value) for name, value in found.items()}


def _last_attempt(party: Party) -> Path | None:
    """The run folder of the job's attempt before this one, if there is a checkpoint in it."""
    if not party.several or not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return None
    folder = processes.recall("run folder")
    return Path(folder) if folder and Checkpoints(Path(folder)).steps() else None


def check_resumes(job: Job) -> None:
    """UsageError unless the checkpoint is one of this very training."""
    run, checkpoint = job.options.resume, job.checkpoint
    if checkpoint is None:
        return
    try:
        check_fits(checkpoint, job.architecture)
    except UsageError as error:
        raise UsageError(f"--resume {run}: {error}") from error
    plain = RunOptions()  # what settings leave out
    for name in sorted({**job.settings, **checkpoint.settings}, key=NAMED.__contains__):  # options before these
        default = getattr(plain, name, None)
        value, theirs = job.settings.get(name, default), checkpoint.settings.get(name, default)
        if theirs != value:
            option = NAMED.get(name, f"--{name.replace('_', '-')}")
            off = value is None or (value is False and isinstance(default, bool))
            now = "without" if off else "with it" if isinstance(default, bool) else value
            raise UsageError(f"--resume {run}: it was trained {_worded(option, theirs)}, not {now}")
    _check_goes_on(job, checkpoint)
    if len(checkpoint.schedule) != job.options.update.groups:
        one, other = ("one rate for all weights", "rates or decay by kind (--bias-lr, --conv1-freeze and the like)")
        was, now = (one, other) if len(checkpoint.schedule) == 1 else (other, one)
        raise UsageError(f"--resume {run}: it was trained with {was}, not with {now}")


def _check_goes_on(job: Job, checkpoint: Checkpoint) -> None:
    """UsageError if it has more steps or epochs already than it is to have in all."""
    limits = job.options.limits
    for name, done in {"steps": checkpoint.step, "epochs": checkpoint.epoch + (checkpoint.batch > 0)}.items():
        wanted = limits[name]
        if wanted is not None and wanted < done:
            raise UsageError(
                f"--{name} {wanted}: --resume {job.options.resume} has {done:,} already; say how many in all"
            )


def _worded(option: str, value: Any) -> str:
    """That it was said, as a person would."""
    if value is None or value is False:
        return f"without {option}"
    return f"with {option}" if value is True else f"with {option} {value}"
