"""Make the subset of Fashion-MNIST that comes with the package, from the full set.

    python tools/embed_fashion_mnist.py [FULL [OUT]]

FULL is Debian's folder and OUT the package's, unless named. The first 200 training and 50 test
images of each class, in the order of the full set; the same bytes each time, for one zlib.
"""

import gzip
import sys
from pathlib import Path

import torch
from torch import Tensor

from splitnet.training import fashion

EACH = {"train": 200, "t10k": 50}
ZLIB = "1.2.13"
"""The version that packed the files in the package; another may pack the same content otherwise."""


def first_of_each(labels: Tensor, count: int) -> Tensor:
    """Places of the first `count` of every class, in order."""
    places = [(labels == label).nonzero()[:count, 0] for label in range(len(fashion.CLASSES))]
    return torch.cat(places).sort().values


def write_idx(path: Path, items: Tensor) -> None:
    """The reverse of `fashion.read_idx`, without a name or time in the gzip header."""
    sizes = b"".join(size.to_bytes(4, "big") for size in items.shape)
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as packed,
    ):
        packed.write(bytes((0, 0, 8, items.ndim)) + sizes + items.numpy().tobytes())


def embed(full: Path, out: Path) -> None:
    for part, count in EACH.items():
        images, labels = (f"{kind.format(part)}.gz" for kind in (fashion.IMAGES, fashion.LABELS))
        all_labels = fashion.read_idx(full / labels, ())
        places = first_of_each(all_labels, count)
        write_idx(out / labels, all_labels[places])
        write_idx(out / images, fashion.read_idx(full / images, (28, 28))[places])


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]]
    embed(*(folders + [fashion.DEBIAN, fashion.EMBEDDED][len(folders) :]))
