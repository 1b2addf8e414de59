"""Compute the mean image and the principal components of colours of an image folder, once, for training on it.

All images of FOLDER/train are read as a training reads them: the centre square, 256 pixels a side for a network of 224.
Interrupted, it goes on where it was when it is called again.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from splitnet import tables
from splitnet.errors import UsageError
from splitnet.interrupts import Interrupts
from splitnet.options import check_bounds, fail, guarded, option, parse, positional, refuse
from splitnet.pixels import FILE, Pixels, Progress, Subject, Sums, is_of, write_pixels
from splitnet.training import folder
from splitnet.training.augment import CUDA_CONVNET2, Components
from splitnet.training.data import order
from splitnet.training.sharing import Interrupted, Stop
from splitnet.training.splits import Dataset, batches

PARTIAL = "splitnet-pixels.partial.safetensors"
"""Sums of the images read so far; beside FILE until that is there."""

UNIT = 1e-3
"""How far given directions may be from unit length and right angles: published ones have five digits."""

BATCH = 32
"""Images that are read at a time."""

PIECE = 2048
"""Images after which sums are saved: what an interruption costs at most."""

PUBLISHED = "cuda-convnet2"
"""The name of components that were published."""

MOST_NAMED = 20
"""Broken images that are printed."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The command line."""

    folder: Path = positional("holds train/<class>/… and val/<class>/…, and gets the file")
    size: int = option(224, "pixels a side that the network reads; images are read with a margin, 256 for 224")
    images: int | None = option(None, "only so many of the training images, chosen by chance")
    components: str | None = option(
        None, f"principal components of colours in place of these images' own: {PUBLISHED}, or a JSON file"
    )
    workers: int = option(4, "threads that decode images")

    def __post_init__(self) -> None:
        check_bounds(self, {"size": (8, 1024), "images": (1, 10**9), "workers": (0, 256)})


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be read, and the files of it."""

    dataset: Dataset
    split: folder.FolderSplit
    places: torch.Tensor
    """Of the images in the split, int64, in the order in which they are read."""
    subject: Subject
    path: Path
    components: Components | None = None
    """Given ones; None: those of the images."""

    @property
    def partial(self) -> Path:
        return self.path.with_name(PARTIAL)

    @property
    def skipped(self) -> dict[str, str]:
        """Broken images found so far, by their names below train/, and why."""
        return {path.relative_to(self.split.folder).as_posix(): why for path, why in self.dataset.skipped.items()}


def task(options: PrepareOptions) -> Task:
    """UsageError for a folder that is none, or cannot be written."""
    try:
        dataset = folder.load(options.folder, options.size, options.workers)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    split = dataset.train
    assert isinstance(split, folder.FolderSplit)
    places = torch.arange(len(split))
    if options.images is not None and options.images < len(split):
        places = order(len(split), 0, 0)[: options.images].sort().values
    names = [split.names[place] for place in places.tolist()]
    subject = Subject.of(split.side, dataset.classes, names)
    components = None if options.components is None else given(options.components)
    return Task(dataset, split, places, subject, options.folder / FILE, components)


def given(name: str) -> Components:
    """Components by name, or of a JSON file: `deviations` of three, and `vectors`, each of R, G, B. UsageError."""
    if name == PUBLISHED:
        return CUDA_CONVNET2
    option, wanted = (
        f"--components {name}",
        'of {"deviations": [3 numbers], "vectors": [3 unit vectors of R, G, B, at right angles]}',
    )
    try:
        found = json.loads(Path(name).read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"{option}: neither {PUBLISHED} nor a file that can be read ({error.strerror or error})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option}: is no JSON ({error})") from error
    try:
        deviations, vectors = (torch.tensor(found[key], dtype=torch.float64) for key in ("deviations", "vectors"))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{option}: is not {wanted}") from error
    sound = deviations.shape == (3,) and bool((deviations >= 0).all()) and bool(deviations.isfinite().all())
    sound = sound and vectors.shape == (3, 3) and _at_right_angles(vectors)
    if not sound or any(
        isinstance(number, bool) for row in ([found["deviations"], *found["vectors"]]) for number in row
    ):
        raise UsageError(f"{option}: is not {wanted}")
    return Components(tuple(deviations.tolist()), tuple(map(tuple, vectors.tolist())))


def _at_right_angles(vectors: torch.Tensor) -> bool:
    """Whether three vectors are of length 1, and at right angles, within UNIT."""
    across = (vectors @ vectors.T).fill_diagonal_(0)
    return bool(((vectors.norm(dim=1) - 1).abs() < UNIT).all() and (across.abs() < UNIT).all())


def begin(job: Task) -> Progress:
    """Where an earlier call got to, or the beginning; saved, so that it is known at once if that cannot be done."""
    progress = Progress.load(job.partial, job.subject)
    if progress is None:
        progress = Progress(Sums.of_none(3, job.subject.side, job.subject.side))
    if progress.done > len(job.places) or (progress.done % BATCH and progress.done != len(job.places)):
        raise UsageError(f"{job.partial}: its counts do not fit; delete it to begin anew")
    job.dataset.skipped.update({job.split.folder / name: why for name, why in progress.skipped.items()})
    try:
        progress.save(job.partial, job.subject)
    except OSError as error:
        raise UsageError(f"{job.path.parent}: cannot write there ({error.strerror})") from error
    return progress


def read(job: Task, progress: Progress, console: Console, stop: Stop) -> None:
    """Read what is left, or until somebody asks to stop; sums are saved then, and after each PIECE."""
    saved, whole = progress.done, len(job.places)
    with bar(console, whole, progress.done) as show:
        for batch in batches(job.split, BATCH, job.places, -(-progress.done // BATCH)):
            progress.sums.add(batch.images)
            progress.done = min((batch.number + 1) * BATCH, whole)
            show(progress.done)
            if stop.asked:
                break
            if progress.done - saved >= PIECE:
                save(job, progress, console)
                saved = progress.done
        else:
            progress.done = whole  # images at the end may all be broken, and bring no batch
    save(job, progress, console)


def save(job: Task, progress: Progress, console: Console) -> None:
    """Where there is no room, the sums that were saved before stand."""
    progress.skipped = job.skipped
    try:
        progress.save(job.partial, job.subject)
    except OSError as error:
        why = f"sums of {progress.done:,} images could not be saved ({error.strerror}); those before them stand"
        console.print(f"{job.partial}: {why}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bar(console: Console, whole: int, done: int) -> Iterator[Callable[[int], None]]:
    """Yields what shows how many images have been read."""
    columns: list[ProgressColumn] = [TextColumn("images"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()]
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=whole, completed=done)
        yield lambda now: progress.update(task, completed=now)


def tell(job: Task, pixels: Pixels, console: Console) -> None:
    """What was found, and every broken image, or the first of many."""
    side, read = job.subject.side, counted(pixels.images, "training image")
    lines = [
        f"Read {read} of {len(job.dataset.classes):,} classes, {side}×{side} pixels each: the network's, and a margin."
    ]
    if job.skipped:
        lines.append(f"Skipped {counted(len(job.skipped), 'broken image')}:")
        named = list(job.skipped.items())[:MOST_NAMED]
        lines += [f"  {job.split.folder / name}: {why}" for name, why in named]
        lines += [f"  and {len(job.skipped) - MOST_NAMED:,} more"] * (len(job.skipped) > MOST_NAMED)
    lines.append("Mean colour: " + _row(pixels.mean.double().mean((1, 2)).tolist(), 2))
    assert pixels.components is not None
    whose = "as given" if job.components is not None else "of these images"
    lines.append(f"Principal components of colours, {whose} (standard deviation, and direction):")
    found = zip(pixels.components.deviations, pixels.components.vectors, strict=True)
    for deviation, vector in sorted(found, reverse=True):  # the file has them in their own order
        lines.append(f"  {deviation:8.4f}  {_row(vector, 5)}")
    lines.append(f"Wrote {job.path}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _row(numbers: Sequence[float], digits: int) -> str:
    return " ".join(f"{number:8.{digits}f}" for number in numbers)


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def finish(job: Task, progress: Progress) -> Pixels:
    """Write the file, and remove the one of sums. UsageError if no image could be read, OSError if there is no room."""
    if not progress.sums.images:
        raise UsageError(f"{job.split.folder}: none of the {counted(len(job.places), 'image')} can be read")
    pixels = progress.sums.result()
    if job.components is not None:
        pixels = replace(pixels, components=job.components)
    write_pixels(job.path, pixels, job.subject, len(job.skipped))
    job.partial.unlink(missing_ok=True)
    return pixels


def prepare(job: Task, console: Console) -> int:
    """Read, write and tell; the exit status. UsageError if nothing can be read or written; Interrupted."""
    progress = begin(job)
    if progress.done:
        left = f"{progress.done:,} of {counted(len(job.places), 'image')} were read before"
        console.print(f"Goes on with {job.partial}: {left}.", highlight=False, markup=False, soft_wrap=True)
    try:
        with Interrupts() as interrupts, interrupts.patient() as stop:
            read(job, progress, console, stop)
        pixels = finish(job, progress)
    except UsageError:  # no image can be read
        job.partial.unlink(missing_ok=True)
        raise
    except OSError as error:
        kept = "what was read is kept: the same command goes on"
        return fail(f"{job.path}: cannot be written ({error.strerror}); {kept}")
    tell(job, pixels, console)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if the file cannot be written in the end, 2 for bad usage, 130 if interrupted."""
    console = tables.console()
    try:
        job = task(parse(PrepareOptions, "prepare", __doc__ or "", argv))
        if is_of(job.path, job.subject) and job.components is None:
            if is_of(job.partial, job.subject):  # it ended between the two
                job.partial.unlink()
            already = f"{job.path} is there already, of these images."
            console.print(already, highlight=False, markup=False, soft_wrap=True)
            return 0
        if is_of(job.path):  # it may have taken hours
            other = (
                "of other images or another size" if job.components is None else "and --components does not change it"
            )
            raise UsageError(f"{job.path}: is there already, {other}; remove it to make this one")
        return prepare(job, console)
    except UsageError as error:
        return refuse(UsageError(str(error).removeprefix("--data-dir ")))
    except Interrupted as error:
        console.print("Interrupted: what was read is kept; the same command goes on.")
        return error.status


if __name__ == "__main__":
    guarded(main)
