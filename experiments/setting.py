"""How large the trials of an experiment are, on which images and devices: its options, and what all have alike."""

from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset
from splitnet.options import check_bounds, option
from splitnet.parallel.placement import Placement, place
from splitnet.pixels import FILE, Pixels, measure, read_pixels
from splitnet.training.data import NAMES, Batch, Dataset, Split, load, order
from splitnet.training.folder import read_side

SEEN = 2000
"""Training images, at most, on which a network is tested after each epoch."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large an experiment's trials are."""

    scale: str = "1/4"
    """Width of every row but the last."""
    side: int | None = 68
    """Of the images, in pixels; None: the preset's."""
    epochs: int = 1
    images: int = 0
    """For training; 0: all."""
    test_images: int = 0
    batch_size: int = 128
    seeds: int = 4

    def __str__(self) -> str:
        side = f"{self.side} pixels" if self.side else "the preset's own images"
        images = f"{self.images:,} training images" if self.images else "all training images"
        epochs = f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
        return f"widths x {self.scale}, {side}, {images}, {epochs}, batch {self.batch_size}"


FULL = Size(scale="1", side=None, epochs=5, seeds=5)
"""The textbook's five epochs of everything."""


@dataclass(frozen=True, kw_only=True)
class Options:
    full: bool = option(False, "the full version: widths, images and epochs of the source; for GPUs")
    scale: str | None = option(None, "width of every row but the last, such as 1/4 (the experiment's own)")
    side: int | None = option(None, "pixels a side of the images (the experiment's own)")
    epochs: int | None = option(None, "passes over the training images (the experiment's own)")
    images: int | None = option(None, "training images, 0 for all (the experiment's own)")
    test_images: int | None = option(None, "test images, 0 for all (the experiment's own)")
    batch_size: int | None = option(None, "images in a step (the experiment's own)")
    seeds: int | None = option(None, "trainings of each variant (the experiment's own)")
    devices: str = option("cpu,cpu", "of the towers, joined by commas; one tower takes the first")
    data: str = option("fashion-mnist", "the images", NAMES)
    data_dir: Path | None = option(None, "where they are")
    threads: int | None = option(None, "CPU threads (PyTorch's choice)")
    fresh: bool = option(False, "forget the trials that are there")
    out: Path | None = option(None, "the folder that gets the results (experiments/results)")

    def __post_init__(self) -> None:
        most = 10**9
        bounds = {"side": (1, 4096), "epochs": (1, most), "images": (0, most), "test_images": (0, most)}
        check_bounds(self, bounds | {"batch_size": (1, 65536), "seeds": (1, 10**6), "threads": (1, 1024)})
        if self.scale is not None:
            fraction(self.scale)

    def size(self, small: Size, full: Size = FULL) -> Size:
        """What was asked for, and where nothing was, the experiment's own."""
        size = full if self.full else small
        asked = {entry.name: getattr(self, entry.name) for entry in fields(Size)}
        return replace(size, **{name: value for name, value in asked.items() if value is not None})


def about(text: str | None, small: Size, full: Size = FULL) -> str:
    """A script's docstring, and the sizes that are its own."""
    own, whole = (
        f"{size}, {f'{size.test_images:,}' if size.test_images else 'all'} test images, {size.seeds} seeds"
        for size in (small, full)
    )
    return f"{text or ''}\nThe experiment's own: {own}.\nWith --full: {whole}."


def fraction(text: str) -> Fraction:
    try:
        found = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"--scale {text}: a fraction such as 1/4") from error
    if not 0 < found <= 16:
        raise UsageError(f"--scale {text}: above 0, at most 16")
    return found


@dataclass(frozen=True, eq=False)
class Setting:
    """What all trials of an experiment have alike."""

    size: Size
    data: Dataset
    devices: tuple[str, ...]
    seen: Split
    """Training images that the network is tested on, too."""
    folder: Path | None = None
    """Where the images are."""

    @classmethod
    def of(cls, options: Options, size: Size, data: Dataset | None = None) -> "Setting":
        """`data`: images of the experiment's own, in place of those of the options.

        UsageError if more of them are asked for than there are; of the experiment's own number all are taken.
        """
        data = data or load(options.data, options.data_dir, size=size.side or 224)
        size = _within(size, options, images=data.train, test_images=data.test)
        train_split, test_split = part(data.train, size.images), part(data.test, size.test_images)
        data = replace(data, train=train_split, test=test_split)
        return cls(size, data, tuple(options.devices.split(",")), part(train_split, SEEN), options.data_dir)

    def table(self, name: str, towers: int = 2) -> Architecture:
        """A preset, as wide and for images as large as the size says."""
        found = preset(name, towers).scaled(fraction(self.size.scale), self.size.side)
        found = found.adapted(self.data.channels, len(self.data.classes))
        found.rows()
        return found

    @cached_property
    def pixels(self) -> Pixels:
        """Mean and colours of the training images. UsageError if a folder's are not prepared."""
        if self.data.name != "imagefolder" or self.folder is None:
            return measure(self.data.train)
        side = read_side(self.size.side or 224)
        return read_pixels(self.folder / FILE, channels=self.data.channels, side=side, classes=self.data.classes)

    def placed(self, table: Architecture) -> Placement:
        return place(table, self.devices[:1] if table.towers == 1 else self.devices)

    def described(self) -> dict[str, Any]:
        """What trials must have alike to be set beside each other."""
        images = f"{len(self.data.train):,} training and {len(self.data.test):,} test images of {self.data.name}"
        sizes = {name: value for name, value in asdict(self.size).items() if name != "seeds"}
        return sizes | {"data": images, "devices": ",".join(self.devices)}


def _within(size: Size, options: Options, **splits: Split) -> Size:
    """No more images than there are."""
    none: Any = 0
    for name, split in splits.items():
        asked, there = getattr(size, name), len(split)
        if asked > there:
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} {asked}: there are {there:,}")
            size = replace(size, **{name: none})
    return size


@dataclass(frozen=True, eq=False)
class Part:
    """Some images of a split."""

    split: Split
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def read(self, indices: Tensor) -> Batch:
        return replace(self.split.read(self.places[indices]), indices=indices)


def part(split: Split, images: int) -> Split:
    """So many images, the same each time, drawn by the hash of their places; 0: all."""
    if not images or images >= len(split):
        return split
    return Part(split, order(len(split), 0, 0)[:images].sort().values)
