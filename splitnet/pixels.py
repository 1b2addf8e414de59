"""What is known of all pixels of a set: the mean image, and the principal components of colours; and the file of them.

Sums are of integers and exact, so that neither the order of images nor an interruption changes a digit.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splitnet.errors import UsageError
from splitnet.measure.lines import write_whole
from splitnet.training.augment import Components
from splitnet.training.splits import Split, batches

FILE = "splitnet-pixels.safetensors"
"""In an image folder."""

SCHEMA = 1
"""Version of the file, and of the one of sums beside it; raised when something in it changes its meaning."""

MAKE = "python -m splitnet.prepare"


@dataclass(frozen=True, eq=False, slots=True)
class Pixels:
    """Of all training images, in 0..255."""

    mean: Tensor
    """The mean image, float32 (C, H, W)."""
    components: Components | None
    """Of the colours of all pixels, the least first; None where there are not three channels."""
    images: int


@dataclass(eq=False, slots=True)
class Sums:
    """Of the images seen so far, of one size: int64, exact up to 10^9 images of 256×256."""

    pixels: Tensor
    """Each pixel's values, (C, H, W)."""
    products: Tensor
    """Two channels' values at the same pixel, over all pixels, (C, C)."""
    images: int = 0

    @classmethod
    def of_none(cls, channels: int, height: int, width: int) -> "Sums":
        whole = torch.int64
        return cls(torch.zeros(channels, height, width, dtype=whole), torch.zeros(channels, channels, dtype=whole))

    def add(self, images: Tensor) -> None:
        """uint8 (B, C, H, W); float64 is exact on the products of fewer than 10^11 pixels."""
        for image in images:
            self.pixels += image
            flat = image.flatten(1).double()
            self.products += (flat @ flat.T).long()
        self.images += len(images)

    def result(self) -> Pixels:
        """ValueError if no image was seen."""
        if not self.images:
            raise ValueError("no image was seen")
        mean = (self.pixels.double() / self.images).float()
        return Pixels(mean, self._components() if len(mean) == 3 else None, self.images)

    def _components(self) -> Components:
        """Standard deviations and directions of the covariance over all pixels of all images.

        The greatest number of a direction is positive: its sign has no meaning.
        """
        count = self.images * self.pixels[0].numel()
        sums, products = self.pixels.sum((1, 2)).tolist(), self.products.tolist()
        covariance = [
            [(count * products[a][b] - sums[a] * sums[b]) / count**2 for b in range(3)] for a in range(3)
        ]  # of Python's integers: the difference of two large numbers is exact
        squares, vectors = torch.linalg.eigh(torch.tensor(covariance, dtype=torch.float64))
        rows = (v * v[v.abs().argmax()].sign() for v in vectors.T)
        return Components(tuple(squares.clamp(0).sqrt().tolist()), tuple(tuple(row.tolist()) for row in rows))


def measure(split: Split, batch_size: int = 256) -> Pixels:
    """Of all images of a split, at the size that they have there. ValueError if it has none."""
    sums: Sums | None = None
    for batch in batches(split, batch_size):
        if sums is None:
            sums = Sums.of_none(*batch.images.shape[1:])
        sums.add(batch.images)
    if sums is None:
        raise ValueError("no image was seen")
    return sums.result()


@dataclass(frozen=True, slots=True)
class Subject:
    """What sums, or a file, are of."""

    side: int
    """Pixels a side of every image."""
    classes: str
    """Hash of the classes' names."""
    names: str
    """Hash of the images' names, in the order in which they are read."""

    @classmethod
    def of(cls, side: int, classes: Sequence[str], names: Sequence[str]) -> "Subject":
        return cls(side, digest(classes), digest(names))


def digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


@dataclass(slots=True)
class Progress:
    """How far the images of a folder have been read: what is saved now and then, to go on from."""

    sums: Sums
    done: int = 0
    """Images read, or found to be broken."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Broken ones, and why."""

    def save(self, path: Path, subject: Subject) -> None:
        """Written aside and renamed. OSError if there is no room: the old one stands."""
        about = {"done": self.done, "images": self.sums.images, "skipped": self.skipped}
        _write(path, {"pixels": self.sums.pixels, "products": self.sums.products}, subject, about)

    @classmethod
    def load(cls, path: Path, subject: Subject) -> "Progress | None":
        """None if there is no such file; UsageError if it is of something else, or not whole."""
        if not path.exists():
            return None
        anew = "delete it to begin anew"
        tensors, about = _read(path, anew)
        other = f"{anew}, or go on with {MAKE} as it was begun"
        if about.get("side") != subject.side:
            side = about.get("side")
            raise UsageError(f"{path}: sums of images of {side} pixels a side, not {subject.side}; {other}")
        if (about.get("classes"), about.get("names")) != (subject.classes, subject.names):
            raise UsageError(f"{path}: sums of other images than are to be read; {other}")
        whole = {"pixels": (3, subject.side, subject.side), "products": (3, 3)}
        _check(path, tensors, whole, torch.int64, anew)
        done, images, skipped = (about.get(name) for name in ("done", "images", "skipped"))
        if not (
            isinstance(images, int) and isinstance(skipped, dict) and images >= 0 and done == images + len(skipped)
        ):
            raise UsageError(f"{path}: its counts do not fit; {anew}")
        return cls(Sums(tensors["pixels"], tensors["products"], images), done, skipped)


def write_pixels(path: Path, pixels: Pixels, subject: Subject, broken: int) -> None:
    """Written aside and renamed. OSError if there is no room."""
    tensors = {"mean": pixels.mean}
    if pixels.components is not None:
        tensors["deviations"] = torch.tensor(pixels.components.deviations, dtype=torch.float64)
        tensors["vectors"] = torch.tensor(pixels.components.vectors, dtype=torch.float64)
    _write(path, tensors, subject, {"images": pixels.images, "broken": broken})


class OtherVersionError(UsageError):
    """A file that another version of splitnet wrote."""


def is_of(path: Path, subject: Subject | None = None) -> bool:
    """Whether there is a whole file, and of this; None: of whatever, another version's too."""
    try:
        _, about = _read(path, "")
    except OtherVersionError:
        return subject is None
    except UsageError:
        return False
    return subject is None or all(about.get(name) == value for name, value in asdict(subject).items())


def read_pixels(path: Path, channels: int, side: int, classes: Sequence[str] | None = None) -> Pixels:
    """What `write_pixels` wrote. UsageError if it is not there, not whole, or of other images than these.

    `classes`: the names of the folder's classes, if they are to be the same.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file; {MAKE} {path.parent} makes it")
    again = f"remove it, and {MAKE} {path.parent} makes it anew"
    tensors, about = _read(path, again)
    mean = tensors.get("mean", torch.empty(0))
    if mean.shape != (channels, side, side):
        shapes = ["×".join(map(str, shape)) for shape in (mean.shape, (channels, side, side))]
        size = round(side * 224 / 256)  # whose read_side it is
        raise UsageError(f"{path}: a mean image of {shapes[0]}, not {shapes[1]}; {again} (--size {size})")
    _check(path, {"mean": mean}, {"mean": tuple(mean.shape)}, torch.float32, again)
    if classes is not None and about.get("classes") != digest(classes):
        raise UsageError(f"{path}: of a folder of other classes; {again}")
    components = None
    if channels == 3:
        _check(path, tensors, {"deviations": (3,), "vectors": (3, 3)}, torch.float64, again)
        rows = tuple(map(tuple, tensors["vectors"].tolist()))
        components = Components(tuple(tensors["deviations"].tolist()), rows)
    return Pixels(mean, components, int(about.get("images") or 0))


def _write(path: Path, tensors: Mapping[str, Tensor], subject: Subject, about: Mapping[str, Any]) -> None:
    try:
        from safetensors.torch import save  # only who saves needs the package
    except ImportError as error:
        raise UsageError(f"{path}: it needs the package safetensors: pip install safetensors") from error
    told = {"schema": SCHEMA} | asdict(subject) | dict(about)
    write_whole(path, save(dict(tensors), {"splitnet": json.dumps(told)}))


def _read(path: Path, again: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what is told of them. UsageError if the file is none of ours; `again`: what to do then."""
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise UsageError(f"{path}: reading it needs the package safetensors: pip install safetensors") from error
    try:
        data = path.read_bytes()  # not mapped: whoever writes into the file would change tensors in use
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        told = json.loads(header["__metadata__"]["splitnet"])
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # safetensors' own error, Python's, or PyTorch's
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(f"{path}: not a file of ours ({reason}); {again}") from error
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        version = told.get("schema") if isinstance(told, dict) else None
        raise OtherVersionError(f"{path}: schema {version}, but this version of splitnet reads {SCHEMA}")
    return tensors, told


def _check(
    path: Path,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    again: str,
) -> None:
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.isfinite().all():
            raise UsageError(f"{path}: {name} is not {dtype} of the shape {shape}; {again}")
