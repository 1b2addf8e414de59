"""Fashion-MNIST: where it is found, what is in it, and what is said of broken files."""

import gzip
import hashlib
import runpy
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from splitnet.errors import UsageError
from splitnet.training import fashion
from splitnet.training.data import Dataset, batches, load

FILES = [kind.format(part) for part in fashion.PARTS for kind in (fashion.IMAGES, fashion.LABELS)]
SUBSET = "2,000 training and 500 test images"
IMAGES_GZ, LABELS_GZ = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"

full_set = pytest.mark.skipif(
    not (fashion.DEBIAN / IMAGES_GZ).exists(), reason="Debian's dataset-fashion-mnist is not installed"
)


def refused(data_dir: Path | None = None) -> str:
    """The one line that a person is told."""
    with pytest.raises(UsageError) as caught:
        load("fashion-mnist", data_dir)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"--data-dir {data_dir}: " if data_dir else "--data fashion-mnist: ")
    return line


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "DEBIAN", Path("/nowhere"))


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(fashion, "_download", fail)


def put(target: Path, pack: bool = True) -> Path:
    """The embedded files as if they were the full set's."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        content = (fashion.EMBEDDED / f"{name}.gz").read_bytes()
        path = target / (f"{name}.gz" if pack else name)
        path.write_bytes(content if pack else gzip.decompress(content))
    return target


def same_images(one: Dataset, other: Dataset) -> bool:
    pairs = zip((one.train, one.test), (other.train, other.test), strict=True)
    return all(torch.equal(next(batches(a, 9999)).images, next(batches(b, 9999)).images) for a, b in pairs)


@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("pack", [True, False])
def test_files_are_found_in_data_dir(tmp_path: Path, below: str, pack: bool) -> None:
    put(tmp_path / below, pack)
    data = load("fashion-mnist", tmp_path)
    assert data.name == "fashion-mnist"
    assert data.origin == f"Fashion-MNIST: {SUBSET} from {tmp_path / below}"
    assert same_images(data, load("fashion-mnist-small"))


@pytest.mark.usefixtures("no_download")
def test_debians_files_come_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "DEBIAN", put(tmp_path))
    assert load("fashion-mnist").origin == f"Fashion-MNIST: {SUBSET} from {tmp_path}"


@pytest.mark.usefixtures("no_debian")
def test_the_embedded_images_come_last_and_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "_download", lambda _: pytest.fail("there was no --data-dir"))
    data = load("fashion-mnist")
    assert data.name == "fashion-mnist-small"
    assert data.origin.startswith(f"embedded subset of Fashion-MNIST: {SUBSET} (full set: --data-dir")


@pytest.mark.usefixtures("no_download")
def test_a_missing_file_is_named(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / LABELS_GZ).unlink()
    line = refused(tmp_path)
    assert f"no {LABELS_GZ} in {tmp_path}, and no download (no network); put the four files there" in line
    assert "no such folder" in refused(tmp_path / "typo")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of the embedded files, where torchvision looks for the full set."""
    packed = [fashion.EMBEDDED / f"{name}.gz" for name in FILES]
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in packed]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(fashion.EMBEDDED))) as server:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("mirror")
def test_the_download_goes_to_torchvisions_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = load("fashion-mnist", tmp_path)
    assert data.origin.endswith(str(tmp_path / fashion.RAW))
    assert [path.name for path in tmp_path.iterdir()] == ["FashionMNIST"]
    assert same_images(data, load("fashion-mnist-small"))
    assert capfd.readouterr() == ("", "")


def test_a_silent_server_is_given_up_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "TIMEOUT", 0.1)
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"])
        start = time.monotonic()
        assert "and no download (" in refused(tmp_path)
    assert time.monotonic() - start < 3
    assert socket.getdefaulttimeout() is None
    assert not list(tmp_path.iterdir())


def test_the_embedded_subset_is_balanced_and_in_range() -> None:
    data = load("fashion-mnist-small")
    assert (data.channels, len(data.classes)) == (1, 10)
    for split, each in ((data.train, 200), (data.test, 50)):
        batch = next(batches(split, 9999))
        assert batch.images.shape == (each * 10, 1, 28, 28)
        assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
        assert batch.labels.bincount().tolist() == [each] * 10
    assert list(data.classes) == FashionMNIST.classes


def test_the_embedded_files_are_small_and_licensed() -> None:
    assert all(path.stat().st_size < 2 << 20 for path in fashion.EMBEDDED.iterdir())
    licence = (fashion.EMBEDDED / "LICENSE").read_text(encoding="utf-8")
    assert "MIT" in licence
    assert "© 2017 Zalando SE" in licence


@full_set
@pytest.mark.slow
def test_the_embedded_files_are_made_again_to_the_byte(tmp_path: Path) -> None:
    tool = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "embed_fashion_mnist.py"))
    tool["embed"](fashion.DEBIAN, tmp_path)
    for path in tmp_path.iterdir():
        made, kept = path.read_bytes(), (fashion.EMBEDDED / path.name).read_bytes()
        assert gzip.decompress(made) == gzip.decompress(kept)
        assert made == kept or tool["ZLIB"] != zlib.ZLIB_RUNTIME_VERSION
    assert len(list(tmp_path.iterdir())) == 4


@full_set
def test_the_full_set_is_as_torchvision_reads_it(tmp_path: Path) -> None:
    data = load("fashion-mnist", fashion.DEBIAN)
    assert "60,000 training and 10,000 test images" in data.origin
    for name in FILES[2:]:
        (tmp_path / name).write_bytes(gzip.decompress((fashion.DEBIAN / f"{name}.gz").read_bytes()))
    ours = data.test.read(torch.arange(10_000))
    assert torch.equal(ours.images[:, 0], read_image_file(str(tmp_path / FILES[2])))
    assert torch.equal(ours.labels, read_label_file(str(tmp_path / FILES[3])))


def idx(items: Tensor) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in items.shape)
    return gzip.compress(bytes((0, 0, 8, items.ndim)) + sizes + items.numpy().tobytes(), 1)


def byte_images(count: int, side: int = 28) -> bytes:
    return idx(torch.zeros(count, side, side, dtype=torch.uint8))


def byte_labels(*labels: int) -> bytes:
    return idx(torch.tensor(labels, dtype=torch.uint8))


BROKEN: list[tuple[str, bytes, str]] = [
    (IMAGES_GZ, b"not gzip", "cannot be read (Not a gzipped file"),
    (IMAGES_GZ, byte_images(3)[:-9], "cannot be read (Compressed file ended"),
    (IMAGES_GZ, byte_images(3)[:-8] + bytes(8), "cannot be read (CRC check failed"),
    (IMAGES_GZ, b"", "begins with 0x, where 0x00000803 was due"),
    (IMAGES_GZ, byte_labels(1), "begins with 0x00000801, where 0x00000803 was due"),
    (IMAGES_GZ, gzip.compress(gzip.decompress(byte_images(3))[:-1]), "has 2,367 bytes, where 2,368 were due"),
    (IMAGES_GZ, gzip.compress(bytes((0, 0, 8, 3, 0))), "has sizes [0, 0, 0], where"),
    (IMAGES_GZ, byte_images(3, side=32), "has sizes [3, 32, 32], where [1 or more, 28, 28] was due"),
    (IMAGES_GZ, byte_images(0), "has sizes [0, 28, 28], where"),
    (LABELS_GZ, byte_labels(*range(10)), "has 10 labels for 2,000 images"),
    (LABELS_GZ, byte_labels(*range(11), *[0] * 1989), "has label 10, where 9 is the last"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BROKEN, ids=[case[2][:24] for case in BROKEN])
def test_a_broken_file_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, reason: str
) -> None:
    (put(tmp_path) / name).write_bytes(content)
    line = refused(tmp_path)
    assert f"{tmp_path / name} {reason}" in line
    assert line.endswith("; delete it, and it is downloaded again")
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path)
    assert refused().endswith("; install dataset-fashion-mnist again, or use --data fashion-mnist-small")
