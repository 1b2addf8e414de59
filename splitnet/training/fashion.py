"""Fashion-MNIST: 28×28 grey images of ten kinds of clothing, read from the idx files it comes in.

Source: github.com/zalandoresearch/fashion-mnist, by Zalando SE, MIT licence. The full set has
60,000 training and 10,000 test images; the first 200 and 50 of each class are in the folder
`fashion_mnist` beside this file, in the same format, made by `tools/embed_fashion_mnist.py`.
"""

import gzip
import socket
import zlib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http.client import HTTPException
from io import StringIO
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from splitnet.errors import UsageError
from splitnet.training.splits import Dataset, HeldSplit

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
EMBEDDED = Path(__file__).parent / "fashion_mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the full set."""

RAW = Path("FashionMNIST", "raw")
"""Where torchvision puts it, below the folder that it is given."""

TIMEOUT = 10.0
"""Seconds that a download waits for each answer, so that a machine without network goes on."""

IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
PARTS = ("train", "t10k")
"""The training and the test split, as the names of their files begin."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A folder of the four files, and what to say of it when one of them is broken."""

    folder: Path
    option: str
    again: str
    """How to get the file again."""


def load(data_dir: Path | None) -> Dataset:
    """The full set from data_dir, where it is downloaded to if need be.

    With data_dir None there is no download: Debian's files are read, else the embedded subset.
    """
    if data_dir is not None:
        again = "delete it, and it is downloaded again"
        return _full(_Source(_find(data_dir), f"--data-dir {data_dir}", again))
    if not _missing(DEBIAN):
        again = "install dataset-fashion-mnist again, or use --data fashion-mnist-small"
        return _full(_Source(DEBIAN, "--data fashion-mnist", again))
    return embedded()


def embedded() -> Dataset:
    """The subset that comes with the package: 2,000 training and 500 test images, balanced."""
    source = _Source(EMBEDDED, "--data fashion-mnist-small", "install splitnet again")
    train, test = (_read_split(source, part) for part in PARTS)
    origin = (
        f"embedded subset of Fashion-MNIST: {len(train):,} training and {len(test):,} test images "
        "(full set: --data-dir, or Debian's dataset-fashion-mnist)"
    )
    return Dataset("fashion-mnist-small", 1, CLASSES, train, test, origin)


def _full(source: _Source) -> Dataset:
    train, test = (_read_split(source, part) for part in PARTS)
    counts = f"{len(train):,} training and {len(test):,} test images"
    origin = f"Fashion-MNIST: {counts} from {source.folder}"
    return Dataset("fashion-mnist", 1, CLASSES, train, test, origin)


def _find(data_dir: Path) -> Path:
    """The folder of the four files: data_dir itself, or where torchvision has or now puts them."""
    if not data_dir.is_dir():
        raise UsageError(f"--data-dir {data_dir}: no such folder; make it to have the set put there")
    folder = min(data_dir, data_dir / RAW, key=lambda place: len(_missing(place)))
    missing = _missing(folder)
    if not missing:
        return folder
    try:
        _download(data_dir)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())  # torchvision's has several lines
        raise UsageError(
            f"--data-dir {data_dir}: no {missing[0]} in {folder}, and no download ({reason}); put the "
            "four files there, or leave the option out to read Debian's or the embedded images"
        ) from error
    return data_dir / RAW


def _missing(folder: Path) -> list[str]:
    """The files that are not in the folder, neither packed nor unpacked."""
    names = [kind.format(part) for part in PARTS for kind in (IMAGES, LABELS)]
    return [f"{name}.gz" for name in names if not _path(folder, name).is_file()]


def _path(folder: Path, name: str) -> Path:
    """The packed file, which carries a checksum, else the unpacked one."""
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() else folder / name


def _download(data_dir: Path) -> None:
    """Torchvision's download, silent. It arrives beside its place, so a failure leaves nothing."""
    from torchvision.datasets import FashionMNIST  # a second to import, for what is rarely needed

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision has no option for it
    try:
        with TemporaryDirectory(prefix=".download-", dir=data_dir) as arrived:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                FashionMNIST(arrived, download=True)
            (data_dir / RAW).mkdir(parents=True, exist_ok=True)
            for file in (Path(arrived) / RAW).iterdir():
                file.replace(data_dir / RAW / file.name)
    finally:
        socket.setdefaulttimeout(before)


def _read_split(source: _Source, part: str) -> HeldSplit:
    """One split, checked: images uint8 (N, 1, 28, 28), labels int64 (N,)."""
    path = _path(source.folder, IMAGES.format(part))
    try:
        images = read_idx(path, (28, 28))
        path = _path(source.folder, LABELS.format(part))
        labels = read_idx(path, ())
        if len(labels) != len(images):
            raise ValueError(f"has {len(labels):,} labels for {len(images):,} images")
        if labels.max() >= len(CLASSES):
            raise ValueError(f"has label {labels.max()}, where {len(CLASSES) - 1} is the last")
    except ValueError as error:
        raise UsageError(f"{source.option}: {path} {error}; {source.again}") from error
    return HeldSplit(images.unsqueeze(1), labels.long())


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The items of an idx file, packed or not: uint8 (N, *shape), N at least 1.

    ValueError, which begins with a verb, if the file is not whole or holds something else. The
    format: two zeros, 8 for bytes, the number of dimensions, each as a big-endian int32, the bytes.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot be read ({error})") from error
    magic = bytes((0, 0, 8, 1 + len(shape)))
    if content[:4] != magic:
        raise ValueError(f"begins with 0x{content[:4].hex()}, where 0x{magic.hex()} was due")
    header = 4 + 4 * (1 + len(shape))
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if sizes[0] == 0 or tuple(sizes[1:]) != shape:
        raise ValueError(f"has sizes {sizes}, where [1 or more, {', '.join(map(str, shape))}] was due")
    if len(content) != header + prod(sizes):
        raise ValueError(f"has {len(content):,} bytes, where {header + prod(sizes):,} were due")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(sizes)
