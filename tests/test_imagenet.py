"""ImageNet's layout from end to end, on a generated folder: a thousand classes, one tiny image of each."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from whole_runs import command, folder_of, records

from splitnet import prepare
from splitnet.measure.records import read_run
from splitnet.pixels import FILE

CLASSES = 1000
RECIPE = ("--preset", "alexnet", "--recipe", "2012", "--data", "imagefolder", "--no-compare", "--no-profile")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """train/n00000000/… to train/n00000999/…, val/ likewise, and a list of names in another order."""
    root = tmp_path_factory.mktemp("imagenet")
    chance = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(CLASSES):
            folder = root / split / f"n{number:08}"
            folder.mkdir(parents=True)
            Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(folder / "one.jpg")
    names = [f"n{number:08} thing {number}, object" for number in reversed(range(CLASSES))]
    (root / "names.txt").write_text("\n".join(names))
    return root


@pytest.mark.slow
def test_a_thousand_classes_are_prepared_trained_and_tested_with_ten_views(imagenet, tmp_path):
    words = (*RECIPE, "--data-dir", imagenet, "--class-names", imagenet / "names.txt", "--out", tmp_path)
    unprepared = command(*words, "--steps", "2", "--batch-size", "4")
    assert unprepared.code == 2
    assert "splitnet.prepare" in unprepared.line
    assert not list(tmp_path.iterdir())

    assert prepare.main([str(imagenet), "--size", "96"]) == 0
    mean = load_file(imagenet / FILE)["mean"]
    assert mean.shape == (3, 110, 110)
    assert 120 < mean.mean() < 135

    said = command(*words, "--steps", "2", "--batch-size", "100", "--no-look")
    assert (said.code, said.err) == (0, "")
    folder = folder_of(tmp_path)
    [test] = records(folder, "test")
    assert (test["images"], test["views"]) == (CLASSES, 10)
    assert test["accuracy"] <= test["top5"] < 0.05
    run = read_run(folder)
    assert (run["classes"][0], run["classes"][-1]) == ("thing 0, object", f"thing {CLASSES - 1}, object")
    assert run["layers"][-1]["row"] == "fc8"
    assert "1,000 classes" in run["data"]
    options = run["options"]
    assert (options["recipe"], options["lr"], options["bias_lr"], options["epochs"]) == ("2012", 0.01, 0.02, None)
    assert (options["crops"], options["views"], options["noise_until"]) == ("chunks", 10, 67)


@pytest.mark.slow
def test_names_of_other_classes_are_one_line(imagenet, tmp_path):
    (tmp_path / "short.txt").write_text("tench\ngoldfish\n")
    words = (*RECIPE, "--pixels", "0..1", "--color-noise", "0", "--data-dir", imagenet)
    said = command(*words, "--class-names", tmp_path / "short.txt", "--steps", "1", "--out", tmp_path / "out")
    assert said.code == 2
    assert said.line.startswith(f"--class-names {tmp_path / 'short.txt'}: 2 names for 1,000 classes; ")
    assert not (tmp_path / "out").exists()
