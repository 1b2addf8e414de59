"""`python -m splitnet.prepare`: sums that no interruption changes, the file of them, and what it refuses."""

import contextlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from quick import quick
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file

from splitnet import pixels, prepare
from splitnet.errors import UsageError
from splitnet.pixels import FILE, Sums, measure, read_pixels
from splitnet.prepare import PARTIAL
from splitnet.training.augment import CUDA_CONVNET2
from splitnet.training.data import HeldSplit, load

ROOT = Path(__file__).parents[1]
SIZE, SIDE = 28, 32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made") / "set", 150)


@pytest.fixture
def images(made, tmp_path):
    """A copy of its own: tests write over images."""
    return shutil.copytree(made, tmp_path / "set", copy_function=shutil.copyfile)


def make(folder, count, broken=(5, 66)):
    """So many training images of two classes, one to test on in each, and two that are broken."""
    chance = np.random.default_rng(3)
    for place in range(count):
        path = folder / "train" / "ab"[place % 2] / f"{place:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        base = chance.integers(0, 200, 3)
        Image.fromarray((base + chance.integers(0, 56, (40, 50, 3))).astype(np.uint8)).save(path)
        if place in broken:
            path.write_bytes(b"\x89PNG no more")
    for name in "ab":
        (folder / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(folder / "val" / name / "0.png")
    return folder


def run(*words):
    """Exit status, stdout and stderr of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = prepare.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def content(folder):
    return tensors_of(folder / FILE)


def tensors_of(path):
    """Tensors and what is told of them, read by safetensors itself."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
        return tensors, json.loads(file.metadata()["splitnet"])


def same(one, other):
    """Whether two files say the same to the bit."""
    return one[1] == other[1] and all(torch.equal(one[0][name], other[0][name]) for name in other[0])


def refused(words, *told):
    code, out, err = run(*words)
    assert (code, out) == (2, ""), err
    assert err.startswith("splitnet: error: ")
    assert err.count("\n") == 1
    assert all(text in err for text in told), err
    assert "--data-dir" not in err


# Sums


def by_numpy(images):
    """Mean image, and standard deviations and directions of colours, in float64."""
    colours = images.double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    squares, vectors = np.linalg.eigh(np.cov(colours, bias=True))
    return images.double().numpy().mean(0), np.sqrt(squares), vectors.T


@given(st.integers(1, 9), st.integers(0, 99), st.integers(1, 5))
def test_mean_and_components_are_numpys(count, seed, batch_size):
    chance = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=chance)
    images[:, 1] = images[:, 0] // 2 + images[:, 1] // 3  # so that they vary together
    found = measure(HeldSplit(images, torch.zeros(count, dtype=torch.int64)), batch_size)
    mean, deviations, vectors = by_numpy(images)
    assert np.abs(found.mean.numpy() - mean).max() < 1e-5
    assert found.mean.dtype == torch.float32
    assert found.images == count
    assert found.components.deviations == pytest.approx(deviations, rel=1e-9)
    for ours, theirs in zip(found.components.vectors, vectors, strict=True):
        assert abs(np.dot(ours, theirs)) == pytest.approx(1, abs=1e-9)
        assert max(ours, key=abs) > 0


def test_two_pixels_by_hand():
    """Colours (0, 0, 10) and (8, 6, 10): variances 16, 9 and 0; along (4, 3)/5 the deviation is 5, and 0 elsewhere."""
    images = torch.tensor([[0, 8], [0, 6], [10, 10]], dtype=torch.uint8).view(1, 3, 1, 2)
    found = measure(HeldSplit(images, torch.zeros(1, dtype=torch.int64)))
    assert found.mean.flatten().tolist() == [0, 8, 0, 6, 10, 10]
    assert found.components.deviations == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9), pytest.approx(5))
    assert found.components.vectors[2] == (pytest.approx(0.8), pytest.approx(0.6), pytest.approx(0, abs=1e-12))


def test_sums_do_not_depend_on_order_or_batches():
    images = torch.randint(0, 256, (50, 3, 9, 9), dtype=torch.uint8)
    found = []
    for places, size in ((torch.arange(50), 50), (torch.randperm(50), 7), (torch.randperm(50), 1)):
        sums = Sums.of_none(3, 9, 9)
        for part in places.split(size):
            sums.add(images[part])
        found.append((sums, sums.result()))
    for sums, result in found[1:]:
        assert torch.equal(sums.pixels, found[0][0].pixels)
        assert torch.equal(sums.products, found[0][0].products)
        assert result.components == found[0][1].components
        assert torch.equal(result.mean, found[0][1].mean)


def test_white_images_have_exact_sums_and_no_components():
    white = torch.full((3, 3, 256, 256), 255, dtype=torch.uint8)
    sums = Sums.of_none(3, 256, 256)
    sums.add(white)
    assert sums.products.flatten().tolist() == [3 * 65536 * 65025] * 9
    sums = Sums(sums.pixels * 500_000, sums.products * 500_000, 1_500_000)  # as many as ImageNet has
    assert sums.result().components.deviations == (0, 0, 0)
    assert (sums.result().mean == 255).all()


def test_grey_images_have_a_mean_image_alone():
    split = load("fashion-mnist-small").train
    found = measure(split)
    assert found.mean.shape == (1, 28, 28)
    assert torch.allclose(found.mean, split.images.double().mean(0).float())
    assert found.components is None


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="no image"):
        measure(HeldSplit(torch.empty(0, 3, 2, 2, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)))
    with pytest.raises(ValueError, match="no image"):
        Sums.of_none(3, 2, 2).result()


# The command


def test_it_measures_all_whole_training_images_and_names_the_broken_ones(images):
    code, out, err = run(images, "--size", SIZE, "--workers", 2)
    assert (code, err) == (0, "")
    assert "Read 148 training images of 2 classes, 32×32 pixels each: the network's, and a margin." in out
    assert "Skipped 2 broken images:" in out
    assert {f"{images}/train/b/005.png", f"{images}/train/a/066.png"} <= {
        line.split(": ")[0].strip() for line in out.splitlines()
    }
    assert f"Wrote {images / FILE}" in out
    split = load("imagefolder", images, size=SIZE, workers=0).train
    whole = split.read(torch.arange(150)).images
    assert whole.shape == (148, 3, SIDE, SIDE)
    mean, deviations, _ = by_numpy(whole)
    found = read_pixels(images / FILE, 3, SIDE, ("a", "b"))
    assert np.abs(found.mean.numpy() - mean).max() < 1e-5
    assert found.components.deviations == pytest.approx(deviations, rel=1e-9)
    assert found.images == 148
    told = content(images)[1]
    assert (told["images"], told["broken"], told["side"]) == (148, 2, SIDE)
    assert f"{deviations[2]:8.4f}" in out
    assert sorted(path.name for path in images.iterdir()) == [FILE, "train", "val"]


def test_it_is_made_once(images):
    assert run(images, "--size", SIZE)[0] == 0
    before = (images / FILE).stat()
    code, out, _ = run(images, "--size", SIZE)
    assert (code, "is there already" in out) == (0, True)
    assert (images / FILE).stat().st_mtime_ns == before.st_mtime_ns
    (images / FILE).write_bytes(b"no file of ours")
    assert "Read 148" in run(images, "--size", SIZE)[1]


def test_a_whole_file_of_something_else_is_not_written_over(images):
    assert run(images, "--size", SIZE)[0] == 0
    before = (images / FILE).read_bytes()
    Image.new("RGB", (40, 40)).save(images / "val" / "a" / "more.png")  # no training image
    for words in (("--size", 56), ("--size", SIZE, "--images", 40)):
        refused((images, *words), f"{images / FILE}: is there already, of other images or another size; remove it")
        assert (images / FILE).read_bytes() == before
    Image.new("RGB", (40, 40)).save(images / "train" / "a" / "more.png")
    refused((images, "--size", SIZE), "of other images or another size; remove it")
    (images / FILE).unlink()
    assert "Read 149" in run(images, "--size", 56)[1]
    assert content(images)[0]["mean"].shape == (3, 64, 64)


def test_a_folder_that_may_not_be_read_is_said(images, monkeypatch):
    """Tests may run as root, who may read everything."""
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    refused((images, "--size", SIZE), f"{images}/train/b: Permission denied")


def test_a_part_of_the_images_is_chosen_by_chance_and_always_alike(images):
    assert "Read 40 training" in run(images, "--size", SIZE, "--images", 40)[1]
    first = content(images)
    (images / FILE).unlink()
    assert run(images, "--size", SIZE, "--images", 40)[0] == 0
    assert same(content(images), first)
    (images / FILE).unlink()
    assert "Read 148" in run(images, "--size", SIZE, "--images", 1000)[1]
    assert not same(content(images), first)


def test_more_than_a_few_broken_images_are_counted(images, monkeypatch):
    monkeypatch.setattr(prepare, "MOST_NAMED", 1)
    out = run(images, "--size", SIZE)[1]
    assert out.count(".png: ") == 1
    assert "and 1 more" in out


def test_progress_is_drawn_on_a_terminal(images):
    screen = io.StringIO()
    with prepare.bar(Console(file=screen, force_terminal=True, width=80), 150, 32) as show:
        show(96)
    assert " 96/150" in screen.getvalue()
    silent = io.StringIO()
    with prepare.bar(Console(file=silent), 150, 0) as show:
        show(96)
    assert silent.getvalue() == ""


# Interruptions


class CutError(Exception):
    """As if the process had ended there."""


def cut_after(monkeypatch, count):
    """End at the n-th batch, after its first sum and before its second."""
    add, seen = Sums.add, []

    def once(self, images):
        seen.append(1)
        if len(seen) == count:
            self.pixels += 1000
            raise CutError
        add(self, images)

    monkeypatch.setattr(Sums, "add", once)


@pytest.mark.parametrize("batch", quick([1, 2, 3, 5], 1, 3))
def test_sums_are_those_of_an_uninterrupted_call_wherever_it_ended(images, monkeypatch, batch):
    assert run(images, "--size", SIZE)[0] == 0
    whole = content(images)
    (images / FILE).unlink()
    monkeypatch.setattr(prepare, "PIECE", 32)
    with monkeypatch.context() as here:
        cut_after(here, batch)
        with pytest.raises(CutError):
            prepare.main([str(images), "--size", str(SIZE)])
    assert not (images / FILE).exists()
    read, add = [], Sums.add
    monkeypatch.setattr(Sums, "add", lambda self, images: read.append(len(images)) or add(self, images))
    code, out, _ = run(images, "--size", SIZE)
    assert code == 0
    assert ("Goes on with" in out) == (batch > 1)
    assert len(read) == 5 - (batch - 1)  # what was saved is not read again
    assert same(content(images), whole)
    assert "Skipped 2 broken images" in out
    assert not (images / PARTIAL).exists()


@pytest.mark.parametrize("last", [(), range(107, 150, 2)], ids=["whole", "broken"])
def test_one_that_ended_before_it_could_write_its_file_only_writes_it(images, monkeypatch, last):
    for place in last:  # all of the last batch: class b follows class a
        (images / "train" / "ab"[place % 2] / f"{place:03}.png").write_bytes(b"")
    assert run(images, "--size", SIZE)[0] == 0
    whole = content(images)
    (images / FILE).unlink()
    with monkeypatch.context() as here:
        here.setattr(prepare, "write_pixels", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        code, out, err = run(images, "--size", SIZE)
    assert code == 1
    assert err == f"splitnet: error: {images / FILE}: cannot be written (No space left on device); what was read is" + (
        " kept: the same command goes on\n"
    )
    sums = (images / PARTIAL).read_bytes()
    monkeypatch.setattr(Sums, "add", lambda *_: pytest.fail("all was read"))
    code, out, _ = run(images, "--size", SIZE)
    assert (code, "150 of 150 images were read before" in out) == (0, True)
    assert same(content(images), whole)
    (images / PARTIAL).write_bytes(sums)  # killed before it could remove them
    assert "is there already" in run(images, "--size", SIZE)[1]
    assert not (images / PARTIAL).exists()


@pytest.mark.parametrize(
    ("number", "batch"),
    quick(product([signal.SIGINT, signal.SIGTERM], [1, 3, 5]), (signal.SIGINT, 3), (signal.SIGTERM, 5)),
)
def test_a_signal_ends_it_after_the_batch_and_the_same_command_goes_on(images, monkeypatch, number, batch):
    assert run(images, "--size", SIZE)[0] == 0
    whole = content(images)
    (images / FILE).unlink()
    add, seen = Sums.add, []

    def interrupted(self, images):
        seen.append(1)
        if len(seen) == batch:
            os.kill(os.getpid(), number)
        add(self, images)

    with monkeypatch.context() as here:
        here.setattr(Sums, "add", interrupted)
        code, out, err = run(images, "--size", SIZE)
    assert (code, err) == (128 + number, "")
    assert "the same command goes on" in out
    assert not (images / FILE).exists()
    code, out, _ = run(images, "--size", SIZE)
    assert f"{min(32 * batch, 150)} of 150 images were read before" in out
    assert same(content(images), whole)


def test_a_full_disk_costs_a_saving_and_not_the_sums(images, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 32)
    save, seen = prepare.Progress.save, []

    def full(self, *args):
        seen.append(1)
        if len(seen) == 3:
            raise OSError(28, "No space left on device")
        save(self, *args)

    monkeypatch.setattr(prepare.Progress, "save", full)
    code, out, _ = run(images, "--size", SIZE)
    assert code == 0
    assert "sums of 64 images could not be saved (No space left on device); those before them stand" in out
    assert "Read 148" in out


def saved(folder):
    """Images whose sums are in the folder."""
    return tensors_of(folder / PARTIAL)[1]["done"] if (folder / PARTIAL).exists() else 0


@pytest.mark.slow
def test_kill_9_costs_no_more_than_the_piece_under_way(tmp_path):
    folder = make(tmp_path / "set", 300)
    assert run(folder, "--size", SIZE)[0] == 0
    whole = content(folder)
    (folder / FILE).unlink()
    code = (  # so slow that it is killed under way
        "import sys, time\nfrom splitnet import pixels, prepare\n"
        "prepare.PIECE, add = 32, pixels.Sums.add\n"
        "pixels.Sums.add = lambda self, images: (time.sleep(0.2), add(self, images))\n"
        "sys.exit(prepare.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, str(folder), "--size", str(SIZE)]
    before = 0
    for _ in range(2):
        child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while saved(folder) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
        before = saved(folder)
    assert not (folder / FILE).exists()
    code, out, _ = run(folder, "--size", SIZE)
    assert f"{before} of 300 images were read before" in out
    assert same(content(folder), whole)


# What it refuses


def test_a_folder_that_is_none(tmp_path, images):
    refused([tmp_path / "none"], str(tmp_path / "none"), "no such folder")
    refused([images / "train"], "train", "no folder train/ in it")
    refused([images / "train" / "a" / "000.png"], "no such folder")
    assert list((images / "train").glob("splitnet*")) == []


@pytest.mark.parametrize("size", [0, 7, 1025, -3, "large"])
def test_an_absurd_size(images, size):
    refused([images, "--size", size], "--size")
    assert not (images / PARTIAL).exists()


@pytest.mark.parametrize(("option", "value"), [("--images", 0), ("--workers", -1), ("--workers", 1000)])
def test_an_absurd_number(images, option, value):
    refused([images, option, value], option)


def test_a_folder_that_cannot_be_written(images, monkeypatch):
    (images / PARTIAL).mkdir()  # where the sums should go
    refused([images, "--size", SIZE], PARTIAL)
    (images / PARTIAL).rmdir()
    monkeypatch.setattr(pixels, "write_whole", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    refused([images, "--size", SIZE], f"{images}: cannot write there (Read-only file system)")
    assert not (images / PARTIAL).exists()


def interrupted(folder, monkeypatch, *words):
    with monkeypatch.context() as here:
        here.setattr(prepare, "PIECE", 32)
        cut_after(here, 3)
        with pytest.raises(CutError):
            prepare.main([str(folder), *map(str, words)])
    assert (folder / PARTIAL).exists()


def test_sums_of_another_size_or_of_other_images(images, monkeypatch):
    interrupted(images, monkeypatch, "--size", SIZE)
    before = (images / PARTIAL).read_bytes()
    refused([images, "--size", 56], PARTIAL, "32 pixels a side, not 64", "delete it")
    refused([images, "--size", SIZE, "--images", 70], PARTIAL, "other images", "delete it")
    Image.new("RGB", (40, 40)).save(images / "train" / "a" / "more.png")
    refused([images, "--size", SIZE], PARTIAL, "other images", "delete it")
    assert (images / PARTIAL).read_bytes() == before
    (images / "train" / "a" / "more.png").unlink()
    assert run(images, "--size", SIZE)[0] == 0


def test_damaged_sums(images, monkeypatch):
    interrupted(images, monkeypatch, "--size", SIZE)
    whole = (images / PARTIAL).read_bytes()
    tensors, told = tensors_of(images / PARTIAL)
    for damaged in (b"", b"x" * 100, whole[:-9], whole[:40]):
        (images / PARTIAL).write_bytes(damaged)
        refused([images, "--size", SIZE], PARTIAL, "not a file of ours")
    for changed in ({"schema": 2}, {"done": None}, {"done": "1"}, {"skipped": [1]}, {"images": None}):
        save_file(tensors, images / PARTIAL, {"splitnet": json.dumps(told | changed)})
        refused([images, "--size", SIZE], PARTIAL)
    for count in (-32, 33, 160, 10**12):  # behind the end, or within a batch
        changed = {"done": count, "images": count - len(told["skipped"])}
        save_file(tensors, images / PARTIAL, {"splitnet": json.dumps(told | changed)})
        refused([images, "--size", SIZE], PARTIAL, "its counts do not fit; delete it")
    for name in tensors:
        for other in (tensors[name][:1], tensors[name].float()):
            save_file(tensors | {name: other}, images / PARTIAL, {"splitnet": json.dumps(told)})
            refused([images, "--size", SIZE], PARTIAL, name)


def test_images_of_which_none_can_be_read(tmp_path):
    folder = make(tmp_path / "set", 6, broken=range(6))
    refused([folder, "--size", SIZE], "none of the 6 images")
    assert sorted(path.name for path in folder.iterdir()) == ["train", "val"]


# Reading it


def test_a_file_that_does_not_fit_is_one_line(images):
    path = images / FILE
    with pytest.raises(UsageError, match=rf"{FILE}: no such file; python -m splitnet.prepare .* makes it"):
        read_pixels(path, 3, SIDE)
    assert run(images, "--size", SIZE)[0] == 0
    with pytest.raises(UsageError, match=r"a mean image of 3×32×32, not 3×256×256; .*--size 224\)$"):
        read_pixels(path, 3, 256)
    with pytest.raises(UsageError, match=r"of 3×32×32, not 1×32×32"):
        read_pixels(path, 1, SIDE)
    with pytest.raises(UsageError, match="of a folder of other classes"):
        read_pixels(path, 3, SIDE, ("a", "c"))
    tensors, told = content(images)
    for name, damaged in (("mean", tensors["mean"].double()), ("vectors", tensors["vectors"] * math.nan)):
        save_file(tensors | {name: damaged}, path, {"splitnet": json.dumps(told)})
        with pytest.raises(UsageError, match=f"{FILE}: {name} is not"):
            read_pixels(path, 3, SIDE)
    save_file({"mean": tensors["mean"]}, path, {"splitnet": json.dumps(told)})
    with pytest.raises(UsageError, match="deviations is not"):
        read_pixels(path, 3, SIDE)
    save_file(tensors, path)
    with pytest.raises(UsageError, match="not a file of ours"):
        read_pixels(path, 3, SIDE)


def test_what_is_written_is_what_is_read(images):
    assert run(images, "--size", SIZE)[0] == 0
    split = load("imagefolder", images, size=SIZE, workers=0).train
    computed, found = measure(split), read_pixels(images / FILE, 3, SIDE)
    assert torch.equal(found.mean, computed.mean)
    assert found.components == computed.components
    assert found.images == computed.images


# Given components, and files of another version.


def test_published_components_take_the_place_of_the_images_own(images):
    code, out, err = run(images, "--size", SIZE, "--components", "cuda-convnet2")
    assert (code, err) == (0, "")
    assert "Principal components of colours, as given" in out
    assert read_pixels(images / FILE, 3, SIDE).components == CUDA_CONVNET2
    own = measure(load("imagefolder", images, size=SIZE).train)
    assert torch.equal(read_pixels(images / FILE, 3, SIDE).mean, own.mean)
    code, _, err = run(images, "--size", SIZE, "--components", "cuda-convnet2")
    assert (code, err.count("\n")) == (2, 1)
    assert "is there already, and --components does not change it; remove it" in err


def test_components_of_a_file(images, tmp_path):
    path = tmp_path / "colours.json"
    path.write_text(json.dumps({"deviations": [1, 2, 3], "vectors": [[1, 0, 0], [0, 0.6, 0.8], [0, -0.8, 0.6]]}))
    assert run(images, "--size", SIZE, "--components", path)[0] == 0
    found = read_pixels(images / FILE, 3, SIDE).components
    assert (found.deviations, found.vectors[1]) == ((1.0, 2.0, 3.0), (0.0, 0.6, 0.8))


def test_components_are_printed_the_largest_first(images, tmp_path):
    path = tmp_path / "colours.json"
    path.write_text(json.dumps({"deviations": [1, 3, 2], "vectors": UNIT_VECTORS}))
    out = run(images, "--size", SIZE, "--components", path)[1].partition("Principal components")[2]
    assert [line.split() for line in out.splitlines()[1:4]] == [
        ["3.0000", "0.00000", "1.00000", "0.00000"],
        ["2.0000", "0.00000", "0.00000", "1.00000"],
        ["1.0000", "1.00000", "0.00000", "0.00000"],
    ]
    assert read_pixels(images / FILE, 3, SIDE).components.deviations == (1.0, 3.0, 2.0)


UNIT_VECTORS = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "neither cuda-convnet2 nor a file that can be read (No such file or directory)"),
        ("{", "is no JSON ("),
        ("[1]", "is not of {"),
        ('{"deviations": [1, 2, 3]}', "is not of {"),
        (json.dumps({"deviations": [1, 2], "vectors": UNIT_VECTORS}), "is not of {"),
        (json.dumps({"deviations": [1, 2, -3], "vectors": UNIT_VECTORS}), "is not of {"),
        (json.dumps({"deviations": [1, 2, math.inf], "vectors": UNIT_VECTORS}), "is not of {"),
        (json.dumps({"deviations": [True, 2, 3], "vectors": UNIT_VECTORS}), "is not of {"),
        (json.dumps({"deviations": ["a", 2, 3], "vectors": UNIT_VECTORS}), "is not of {"),
        (json.dumps({"deviations": 5, "vectors": UNIT_VECTORS}), "is not of {"),
        (json.dumps({"deviations": [1, 2, 3], "vectors": [[True, 0, 0], *UNIT_VECTORS[1:]]}), "is not of {"),
        (json.dumps({"deviations": [1, 2, 3], "vectors": [UNIT_VECTORS[0]] * 3}), "is not of {"),
        (json.dumps({"deviations": [1, 2, 3], "vectors": [[1, 1, 0], *UNIT_VECTORS[1:]]}), "is not of {"),
        (json.dumps({"deviations": [1, 2, 3], "vectors": UNIT_VECTORS[:2]}), "is not of {"),
    ],
)
def test_wrong_components_are_one_line_and_nothing_is_written(images, tmp_path, text, line):
    path = tmp_path / "colours.json"
    if text is not None:
        path.write_text(text)
    code, out, err = run(images, "--size", SIZE, "--components", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"splitnet: error: --components {path}: {line}")
    assert not (images / FILE).exists()
    assert not (images / PARTIAL).exists()


def test_a_file_of_another_version_is_not_written_over(images, monkeypatch):
    monkeypatch.setattr(pixels, "SCHEMA", pixels.SCHEMA + 1)
    assert run(images, "--size", SIZE)[0] == 0
    before = (images / FILE).read_bytes()
    monkeypatch.undo()
    code, _, err = run(images, "--size", SIZE)
    assert code == 2
    assert "is there already" in err
    assert (images / FILE).read_bytes() == before
