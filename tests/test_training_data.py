"""Images of every set: their order, their batches, their way to pixels; and the synthetic ones."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import transforms

from splitnet.errors import UsageError
from splitnet.training import synthetic
from splitnet.training.data import HeldSplit, batches, load, order, to_network


def counting(count: int) -> HeldSplit:
    """A split whose image i is the byte i, and its label too."""
    return HeldSplit(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(count))


def test_other_names_and_needless_folders_are_refused() -> None:
    known = "--data mnist: the data sets are fashion-mnist, fashion-mnist-small, imagefolder, synthetic"
    with pytest.raises(UsageError, match=known):
        load("mnist")
    for name in ("synthetic", "fashion-mnist-small"):
        with pytest.raises(UsageError, match=f"--data-dir x: {name} reads no folder"):
            load(name, Path("x"))


# Order and batches

counts, seeds = st.integers(0, 300), st.integers(-(2**40), 2**70)


@given(counts, seeds, st.integers(0, 10**6))
def test_an_order_is_a_permutation_of_its_key(count: int, seed: int, epoch: int) -> None:
    places = order(count, seed, epoch)
    assert places.dtype == torch.int64
    assert places.sort().values.tolist() == list(range(count))
    assert torch.equal(places, order(count, seed, epoch))


@given(st.integers(64, 300), seeds, st.integers(0, 10**6))
def test_orders_differ_between_epochs_and_seeds(count: int, seed: int, epoch: int) -> None:
    places = order(count, seed, epoch)
    for other in (order(count, seed, epoch + 1), order(count, seed + 1, epoch)):
        assert (places == other).sum() < count / 2


def test_an_order_is_the_same_on_every_machine() -> None:
    assert order(8, 0, 0).tolist() == [7, 4, 3, 1, 2, 5, 0, 6]


@given(counts, st.integers(1, 50), st.integers(0, 9), seeds)
def test_batches_are_consecutive_slices(count: int, size: int, start: int, seed: int) -> None:
    split, places = counting(count), order(count, seed, 0)
    every = [batch.indices.tolist() for batch in batches(split, size, places)]
    assert [place for batch in every for place in batch] == places.tolist()
    assert all(len(batch) == size for batch in every[:-1])
    assert [batch.indices.tolist() for batch in batches(split, size, places, start)] == every[start:]


def test_a_batch_holds_what_its_indices_say() -> None:
    for batch in batches(counting(10), 4, order(10, 1, 2)):
        assert batch.images.flatten().tolist() == batch.labels.tolist() == batch.indices.tolist()
    assert [len(batch.indices) for batch in batches(counting(10), 4)] == [4, 4, 2]


def test_batches_need_a_size() -> None:
    with pytest.raises(UsageError, match=re.escape("--batch-size 0: a batch has at least 1 image")):
        next(batches(counting(3), 0))


# To pixels


@pytest.mark.parametrize("side", [16, 32, 40])
def test_pixels_lie_as_the_first_convolution_reads_them(side: int) -> None:
    pixels = to_network(torch.zeros(2, 3, side, side, dtype=torch.uint8), 32)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_small_images_are_stretched_as_torchvision_does() -> None:
    images = next(batches(load("fashion-mnist-small").test, 8)).images
    resize = transforms.Compose([transforms.ToPILImage(), transforms.Resize(224), transforms.ToTensor()])
    theirs = torch.stack([resize(image) for image in images])
    ours = to_network(images, 224)
    assert ours.shape == (8, 1, 224, 224)
    assert (ours - theirs).abs().max() <= 1 / 255 + 1e-6  # theirs rounds to bytes, twice: rows, then columns
    assert torch.allclose(ours, transforms.Resize(224)(images / 255), atol=1e-6)


def test_large_images_are_cut_at_their_centre() -> None:
    images = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    theirs = transforms.CenterCrop(224)(images) / 255
    assert torch.equal(to_network(images, 224), theirs)
    assert torch.equal(to_network(images, 255), images[..., :255, :255] / 255)
    assert torch.equal(to_network(images, 256), images / 255)


def test_an_image_with_one_short_side_is_stretched_whole() -> None:
    images = torch.full((1, 1, 4, 40), 51, dtype=torch.uint8)
    assert torch.allclose(to_network(images, 8), torch.full((1, 1, 8, 8), 0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [20, 28, 50])
def test_pixels_are_rounded_once(dtype: torch.dtype, size: int) -> None:
    images = next(batches(load("fashion-mnist-small").test, 4)).images
    exact = to_network(images, size, torch.float64)
    pixels = to_network(images, size, dtype)
    assert pixels.dtype == dtype
    assert 0 <= exact.min() < 0.9 < exact.max() <= 1
    assert (pixels.double() - exact).abs().max() <= torch.finfo(dtype).eps / 4 + 1e-6  # half a step below 1


def test_only_bytes_are_taken() -> None:
    with pytest.raises(TypeError, match="float32"):
        to_network(torch.zeros(1, 1, 2, 2), 2)


# Synthetic images


def test_synthetic_images_are_the_same_on_every_machine() -> None:
    data = load("synthetic", seed=3, train=20, test=10, channels=1, classes=5)
    batch = next(batches(data.train, 99))
    assert batch.images.shape == (20, 1, 32, 32)
    assert batch.labels.tolist() == list(range(5)) * 4
    assert batch.images[7, 0, 0, :4].tolist() == [152, 145, 116, 239]
    more = load("synthetic", seed=3, train=40, channels=1, classes=5).train.read(torch.arange(20))
    assert torch.equal(batch.images, more.images)
    other = load("synthetic", seed=4, channels=1, classes=5).train.read(torch.arange(20))
    assert not torch.equal(batch.images, other.images)
    assert not torch.equal(batch.images[:10], data.test.read(torch.arange(10)).images)


def test_synthetic_classes_can_be_told_apart() -> None:
    data = load("synthetic", size=16)
    train, test = (next(batches(split, 9999)) for split in (data.train, data.test))
    assert train.images.shape == (512, 3, 16, 16)
    assert 120 < train.images.float().mean() < 134
    pixels = train.images.double().flatten(1)
    means = torch.stack([pixels[train.labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(test.images.double().flatten(1), means).argmin(1)
    assert torch.equal(nearest, test.labels)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"test": -1}, {"channels": 0}, {"classes": 1}])
def test_synthetic_sets_have_some_of_everything(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"--data synthetic: {next(iter(wrong.values()))} "):
        synthetic.make(8, 0, **wrong)
