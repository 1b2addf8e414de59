"""One device, one process, two processes, two replicas of two: the same network from one seed."""

import pytest
import torch
from jobs import TESTS, torchrun
from layouts import small
from rank_training import BATCH, REST, STEPS, attempt, cases
from safetensors.torch import load_file

import splitnet
from experiments.layouts import Trained, differences

pytestmark = pytest.mark.ranks

TOLERANCES = {"float64": (1e-12, 1e-12, 1e-12), "float32": (1e-4, 1e-2, 1e-4)}
"""Of losses, gradients and weights, on these small networks."""

LAYOUTS = {
    "two processes": (2, 2, 0),
    "2x2": (4, 2, 1),
    "three replicas of one tower": (3, 1, 2),
}
"""Processes, the towers that share a network, and the images of weight 0 in an epoch's last batch."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_the_same_network(layout, tmp_path):
    """One job for all: starting it takes longer than what is looked at."""
    world, towers, padding = LAYOUTS[layout]
    ended = torchrun(world, TESTS / "rank_training.py", tmp_path, str(towers))
    assert ended.code == 0, ended.err
    for case, (architecture, dtype, execution) in cases(towers).items():
        theirs = Trained.read(tmp_path / f"{case}.safetensors")
        if execution.wire is None:  # a cast flips where the sums of replicas are rounded otherwise
            check_equals_one_device(theirs, case, towers)
        assert set(zip(theirs.images, theirs.padding, strict=True)) == {(BATCH, 0), (REST, padding)}, case
        if towers > 1:
            check_collectives(theirs, architecture, (execution.crosses_as or dtype).itemsize)
        if layout == "two processes":
            check_same_bits(theirs, attempt(case, towers, devices=["cpu", "cpu"]), case)


def check_equals_one_device(theirs, case, towers):
    ours = attempt(case, towers, devices=["cpu"])
    assert len(set(ours.losses)) == STEPS  # it learns, or there would be nothing to compare
    assert all(tensor.norm() > 0 for kind in (ours.gradients, ours.weights) for tensor in kind.values())
    assert theirs.gradients.keys() == ours.gradients.keys()
    precision = case.rpartition("-")[2]
    worst = differences(theirs, ours, precision == "float64")
    assert all(value <= most for value, most in zip(worst, TOLERANCES[precision], strict=True)), (case, worst)
    assert theirs.images == ours.images


def check_collectives(theirs, architecture, itemsize):
    """Those of the table, in number and in bytes."""
    a_step = {"all_gather": 3, "gather": 1, "reduce_scatter": 3, "scatter": 1}
    assert theirs.collectives == {kind: count * STEPS for kind, count in a_step.items()}
    crossed = sum(theirs.images) + sum(theirs.padding)
    assert theirs.bytes == architecture.bytes_exchanged(1) * crossed * itemsize // 4


def check_same_bits(theirs, ours, case):
    """Two processes do what two devices of one process do, casts for the crossing and overlap included."""
    assert theirs.losses == ours.losses, case
    assert all(torch.equal(theirs.gradients[name], tensor) for name, tensor in ours.gradients.items()), case
    assert all(torch.equal(theirs.weights[name], tensor) for name, tensor in ours.weights.items()), case


def test_build_gives_each_process_its_tower(tmp_path):
    ended = torchrun(2, TESTS / "rank_build.py", tmp_path)
    assert ended.code == 0, ended.err
    refused = "towers 1: this job's processes are in groups of 2"
    assert sorted(ended.out.splitlines()) == [
        f"rank 0: output (3, 10), 16 tensors, 1 tower; {refused}",
        f"rank 1: output (), 0 tensors, 1 tower; {refused}",
    ]
    built = load_file(tmp_path / "built.safetensors")
    alone = splitnet.build(small("alexnet"), devices=["cpu", "cpu"], seed=4).eval()
    images = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(built.pop("output"), alone(images))
    whole = alone.whole_state_dict()
    assert built.keys() == whole.keys()
    assert all(torch.equal(built[name], tensor) for name, tensor in whole.items())
