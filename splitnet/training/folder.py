"""Image files in folders, laid out as ImageNet is: train/<class>/<image>, val/<class>/<image>.

Every image becomes three channels and a square of `read_side(size)` pixels, so that a batch is one
tensor, and a network of that size has a margin to cut from.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from splitnet.errors import UsageError
from splitnet.training.prefetch import Pool
from splitnet.training.splits import Batch, Dataset

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""A file is an image if its name ends so, in either case, and does not begin with a dot."""


def read_side(size: int) -> int:
    """Pixels a side that are read for a network of `size`: 256 for 224, others in proportion."""
    return round(size * 256 / 224)


@dataclass(frozen=True, eq=False, slots=True)
class FolderSplit:
    """The files of train/ or val/, decoded whenever they are read."""

    folder: Path
    names: Sequence[str]
    """Of the files, below the folder."""
    labels: Tensor
    """int64 (N,)."""
    side: int
    pool: Pool
    """The data set's: its threads decode, and let go of the interpreter's lock meanwhile."""
    skipped: dict[Path, str]
    """The data set's: a file that cannot be decoded is entered once."""

    def __len__(self) -> int:
        return len(self.names)

    def reading(self) -> AbstractContextManager[object]:
        return self.pool

    def begin(self, indices: Tensor) -> "Decoding":
        return Decoding(self, indices)

    def read(self, indices: Tensor) -> Batch:
        """UsageError if no image of the whole split can be decoded: an epoch would have no step."""
        with self.pool:
            return self.begin(indices).result()

    def batch(self, indices: Tensor, images: Tensor, reasons: Sequence[str | None]) -> Batch:
        """Of what was decoded, with a reason for each image that was not; these are entered."""
        for index, reason in zip(indices.tolist(), reasons, strict=True):
            if reason is not None:
                self.skipped.setdefault(self.folder / self.names[index], reason)
        good = torch.tensor([reason is None for reason in reasons], dtype=torch.bool)
        if not good.any():
            self._check_any_is_left()
        if good.all():
            return Batch(images, self.labels[indices], indices)
        return Batch(images[good], self.labels[indices[good]], indices[good])

    def _check_any_is_left(self) -> None:
        paths = [self.folder / name for name in self.names]
        if all(path in self.skipped for path in paths):
            raise UsageError(
                f"--data-dir {self.folder.parent}: none of the {len(paths):,} images in "
                f"{self.folder} can be read; the first: {self.skipped[paths[0]]}"
            )


class Decoding:
    """Images that a pool's threads decode, each thread every so manieth; without threads, whoever asks."""

    def __init__(self, split: FolderSplit, indices: Tensor) -> None:
        self.split, self.indices = split, indices
        self._paths = [split.folder / split.names[index] for index in indices.tolist()]
        self._images = torch.empty(len(self._paths), 3, split.side, split.side, dtype=torch.uint8)
        self._reasons: list[str | None] = [None] * len(self._paths)
        self._dropped = False
        threads = min(split.pool.workers, len(self._paths))
        self._parts = [split.pool.submit(partial(self._decode, first, threads)) for first in range(threads)]

    @property
    def ready(self) -> bool:
        return all(part.done() for part in self._parts) and (bool(self._parts) or not self._paths)

    def result(self) -> Batch:
        for part in self._parts:
            part.result()
        if not self._parts:
            self._decode(0, 1)
        return self.split.batch(self.indices, self._images, self._reasons)

    def drop(self) -> None:
        self._dropped = True

    def _decode(self, first: int, step: int) -> None:
        # Written by numpy: in every thread that copies with PyTorch, OpenMP would start threads of its own.
        pixels = self._images.numpy()
        for place in range(first, len(self._paths), step):
            if self._dropped:
                return
            try:
                decode_into(self._paths[place], pixels[place])
            except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, …
                self._reasons[place] = f"{type(error).__name__}: {error}"


def decode(path: Path, side: int) -> Tensor:
    """The centre square of an image as RGB, uint8 (3, side, side), resized bilinearly, antialiased."""
    pixels = np.empty((3, side, side), np.uint8)
    decode_into(path, pixels)
    return torch.from_numpy(pixels)


def decode_into(path: Path, pixels: NDArray[Any]) -> None:
    """The same, into uint8 (3, side, side)."""
    side = pixels.shape[-1]
    with Image.open(path) as image:
        shorter = min(image.size)
        left, top = (image.width - shorter) / 2, (image.height - shorter) / 2
        box = (left, top, left + shorter, top + shorter)
        square = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, box)
    pixels[:] = np.asarray(square).transpose(2, 0, 1)


def load(data_dir: Path | None, size: int, workers: int) -> Dataset:
    """Both splits of a folder; the classes are the names of its subfolders, sorted.

    `workers` threads decode for both; without any, whoever reads does.
    """
    if data_dir is None:
        raise UsageError("--data imagefolder: name its folder with --data-dir; it holds train/, val/")
    if workers < 0:
        raise UsageError(f"--workers {workers}: at least 0")
    option = f"--data-dir {data_dir}"
    if not data_dir.is_dir():
        raise UsageError(f"{option}: no such folder; one that holds train/ and val/ is needed")
    classes = _classes(data_dir / "train", option)
    _check_same(classes, _classes(data_dir / "val", option), option)
    skipped: dict[Path, str] = {}
    pool = Pool(workers)
    train, test = (
        FolderSplit(folder, *_files(folder, classes, option), read_side(size), pool, skipped)
        for folder in (data_dir / "train", data_dir / "val")
    )
    origin = f"{data_dir}: {len(train):,} training and {len(test):,} test images of {len(classes):,} classes"
    return Dataset("imagefolder", 3, classes, train, test, origin, skipped)


def _classes(folder: Path, option: str) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UsageError(f"{option}: no folder {folder.name}/ in it; train/ and val/ are needed")
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    classes = tuple(sorted(entry.name for entry in entries if entry.is_dir()))
    if len(classes) < 2:
        found = f"only {classes[0]}" if classes else "none"
        raise UsageError(f"{option}: {folder} needs a folder for each of 2 or more classes: {found}")
    return classes


def _check_same(train: tuple[str, ...], val: tuple[str, ...], option: str) -> None:
    different = sorted(set(train) ^ set(val))
    if different:
        has, lacks = ("train/", "val/") if different[0] in train else ("val/", "train/")
        raise UsageError(f"{option}: class {different[0]} is in {has} and not in {lacks}; both need the same classes")


def _files(folder: Path, classes: Sequence[str], option: str) -> tuple[list[str], Tensor]:
    """The images of a split, named from its folder on, class by class, and their labels (N,)."""
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = _images(folder / name)
        if not images:
            raise UsageError(f"{option}: no image in {folder / name}; a class has at least one {', '.join(SUFFIXES)}")
        names += images
        labels += [label] * len(images)
    return names, torch.tensor(labels)


def _images(folder: Path) -> list[str]:
    """The images at any depth below a class's folder, sorted by code point: the same everywhere."""
    images: list[str] = []
    for where, below, files in os.walk(folder, onerror=_refuse):
        below[:] = [name for name in below if not name.startswith(".")]  # os.walk enters what is left
        prefix = Path(where).relative_to(folder.parent).as_posix()
        images += [f"{prefix}/{name}" for name in files if _is_image(name)]
    return sorted(images)


def _refuse(error: OSError) -> None:
    raise error


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
