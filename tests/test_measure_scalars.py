"""What TensorBoard reads of a run, read back."""

import warnings

import pytest
import torch

from splitnet.measure import scalars

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports is deprecated in part
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RECORDS = [
    {"kind": "step", "step": 0, "loss": 2.5, "accuracy": 0.125, "images": 8, "seconds": 0.5},
    {"kind": "step", "step": 1, "loss": 2.25, "accuracy": 0.25, "images": 8, "seconds": 0.25},
    {
        "kind": "test",
        "step": 2,
        "loss": 2.0,
        "accuracy": 0.5,
        "images": 100,
        "seconds": 0.0,
        "rates": {"weights": 0.5, "biases": 0.25},
    },
]


def read(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def test_scalars_are_the_records(tmp_path):
    scalars.write(tmp_path, RECORDS)
    found = read(tmp_path)
    values = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert values == {
        "train/loss": [(0, 2.5), (1, 2.25)],
        "train/accuracy": [(0, 0.125), (1, 0.25)],
        "train/images per second": [(0, 16.0), (1, 32.0)],
        "test/loss": [(2, 2.0)],
        "test/accuracy": [(2, 0.5)],
        "learning rate/weights": [(2, 0.5)],
        "learning rate/biases": [(2, 0.25)],
    }


def test_filters_and_texts_are_there(tmp_path):
    scalars.write(
        tmp_path, RECORDS[:2], {"conv1/tower 0": torch.rand(48, 1, 11, 11)}, {"comparison": "| a |\n|---|\n| 1 |"}
    )
    found = read(tmp_path)
    assert found.Tags()["images"] == ["conv1/tower 0"]
    [picture] = found.Images("conv1/tower 0")
    assert picture.step == 2  # the updates that made it
    assert (picture.width, picture.height) == (16 * 12 + 1, 3 * 12 + 1)
    assert found.Tags()["tensors"] == ["comparison/text_summary"]


@pytest.mark.parametrize("channels", [1, 3, 48])
def test_all_towers_share_one_scale(channels):
    """A weight of 1 is white and one of -1 black, whichever tower it is in."""
    one, two = torch.full((2, channels, 3, 3), 1.0), torch.full((2, channels, 3, 3), -1.0)
    two[0, 0, 0, 0] = 0.0
    found = scalars.pictures({"one": one, "two": two})
    assert found["one"][:, 1:4, 1:4].eq(1).all()
    assert found["two"][0, 1, 1] == 0.5
    assert found["two"][0, 2, 2] == 0
    assert found["one"].shape[0] == 3


def test_no_filters_no_pictures():
    assert scalars.pictures({}) == {}
