"""Folders of images: how they are read, what is skipped, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from splitnet.errors import UsageError
from splitnet.training import folder
from splitnet.training.data import batches, load


def save(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, three images each in train/ and one in val/, made in no order."""
    for name in ("train/b/2.png", "train/a/1.png", "train/b/1.PNG", "train/a/3.jpg", "train/a/2.png", "train/b/3.png"):
        save(tmp_path / name)
    for name in ("val/b/1.png", "val/a/1.png"):
        save(tmp_path / name)
    return tmp_path


def test_a_folder_is_read_in_order_of_names(images: Path) -> None:
    (images / "train/a/notes.txt").write_text("not an image")
    (images / "train/a/._1.png").write_text("what macOS leaves")
    save(images / "train/.cache/1.png")
    save(images / "train/a/.thumbnails/1.png")
    save(images / "train/b/deeper/0.png")
    data = load("imagefolder", images, size=7)
    assert (data.channels, data.classes) == (3, ("a", "b"))
    assert isinstance(data.train, folder.FolderSplit)
    assert data.train.names == ["a/1.png", "a/2.png", "a/3.jpg", "b/1.PNG", "b/2.png", "b/3.png", "b/deeper/0.png"]
    batch = data.train.read(torch.tensor([5, 0]))
    assert batch.images.shape == (2, 3, 8, 8)
    assert batch.images.is_contiguous()
    assert batch.images[:, :, 3, 3].tolist() == [[10, 20, 30]] * 2
    assert (batch.labels.tolist(), batch.indices.tolist()) == ([1, 0], [5, 0])
    assert data.origin == f"{images}: 7 training and 2 test images of 2 classes"
    assert not data.skipped


@pytest.mark.parametrize(("size", "side"), [(224, 256), (227, 259), (64, 73), (28, 32)])
def test_folders_are_read_with_a_margin(size: int, side: int) -> None:
    assert folder.read_side(size) == side


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (21, 30)])
def test_the_centre_square_is_read_as_torchvision_does(tmp_path: Path, shape: tuple[int, int]) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    smooth = np.stack([x * 255, y * 255, (x + y) * 127], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.png")
    theirs = transforms.CenterCrop(24)(transforms.Resize(24)(Image.fromarray(smooth)))
    ours = folder.decode(tmp_path / "a.png", 24)
    difference = ours.int() - transforms.functional.pil_to_tensor(theirs).int()
    assert difference.abs().max() <= 5  # theirs rounds the longer side and the crop to whole pixels


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1"])
def test_every_kind_of_image_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (9, 9), "white").convert(mode).save(tmp_path / "a.tiff")
    assert folder.decode(tmp_path / "a.tiff", 4).unique().tolist() == [255]


def test_broken_images_are_skipped_and_told_once(images: Path) -> None:
    whole = (images / "train/a/3.jpg").read_bytes()
    (images / "train/a/3.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "train/b/1.PNG").write_bytes(b"")
    data = load("imagefolder", images, size=7)
    for _ in range(2):
        got = list(batches(data.train, 2, torch.tensor([5, 2, 3, 2, 0, 1])))
        assert [batch.indices.tolist() for batch in got] == [[5], [0, 1]]  # the second had no image left
        assert [batch.labels.tolist() for batch in got] == [[1], [0, 0]]
        assert [len(batch.images) for batch in got] == [1, 2]
    assert set(data.skipped) == {images / "train/a/3.jpg", images / "train/b/1.PNG"}
    assert "UnidentifiedImageError" in data.skipped[images / "train/b/1.PNG"]


def test_a_split_without_one_good_image_is_refused(images: Path) -> None:
    for name in ("a", "b"):
        (images / f"val/{name}/1.png").write_bytes(b"")
    data = load("imagefolder", images)
    passing = batches(data.test, 1)
    with pytest.raises(UsageError, match=rf"--data-dir {images}: none of the 2 images in {images / 'val'} can be read"):
        list(passing)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: remove(root / "val"), "no folder val/ in it; train/ and val/ are needed"),
    (lambda root: remove(root / "train"), "no folder train/ in it"),
    (lambda root: remove(root / "train/b"), "needs a folder for each of 2 or more classes: only a"),
    (lambda root: [child.rename(root / child.name) for child in (root / "train").iterdir()], "2 or more classes: none"),
    (lambda root: root.rename(root.with_name("elsewhere")), "no such folder; one that holds train/ and val/"),
    (lambda root: save(root / "train/aa/1.png"), "class aa is in train/ and not in val/"),
    (lambda root: save(root / "val/c/1.png"), "class c is in val/ and not in train/"),
    (lambda root: remove(root / "val/b/1.png"), "no image in {root}/val/b; a class has at least one .bmp"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=[case[1][:28] for case in CHANGES])
def test_a_folder_laid_out_otherwise_is_refused(images: Path, change: Callable[[Path], object], reason: str) -> None:
    change(images)
    with pytest.raises(UsageError) as caught:
        load("imagefolder", images)
    line = str(caught.value)
    assert line.startswith(f"--data-dir {images}: ")
    assert reason.format(root=images) in line
    assert "\n" not in line


def test_a_folder_has_to_be_named() -> None:
    with pytest.raises(UsageError, match="--data imagefolder: name its folder with --data-dir"):
        load("imagefolder")


def test_less_than_no_threads_are_refused(images: Path) -> None:
    with pytest.raises(UsageError, match="--workers -1: at least 0"):
        load("imagefolder", images, workers=-1)


@pytest.mark.parametrize("workers", [0, 1, 3, 8])
def test_any_number_of_threads_reads_the_same(images: Path, workers: int) -> None:
    (images / "train/b/2.png").write_bytes(b"broken")
    data, alone = (load("imagefolder", images, size=7, workers=count) for count in (workers, 0))
    for one, other in zip(batches(data.train, 4), batches(alone.train, 4), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)
        assert one.images.is_contiguous()
    assert data.skipped == alone.skipped != {}
