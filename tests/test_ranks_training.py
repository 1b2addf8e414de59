"""One device, one process, two processes, two replicas of two: the same network from one seed."""

import pytest
import torch
from jobs import TESTS, torchrun
from layouts import small
from rank_training import BATCH, REST, STEPS, attempt, cases
from safetensors.torch import load_file

import splitnet
from experiments.layouts import A_STEP, Trained, differences

pytestmark = pytest.mark.ranks

TOLERANCES = {"float64": (1e-12, 1e-12, 1e-12), "float32": (1e-4, 1e-2, 1e-4)}
"""Of losses, gradients and weights, on these small networks."""

LAYOUTS = {"two processes": (2, 2), "2x2": (4, 2), "three replicas of one tower": (3, 1)}
"""Processes, and the towers that share a network."""

KEYS = [(layout, case) for layout, (_, towers) in LAYOUTS.items() for case in cases(towers)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each layout came to, trained when first asked for."""
    made = {}

    def of(layout, case):
        if layout not in made:
            world, towers = LAYOUTS[layout]
            folder = tmp_path_factory.mktemp("ranks")
            ended = torchrun(world, TESTS / "rank_training.py", folder, str(towers))
            assert ended.code == 0, ended.err
            made[layout] = {path.stem: Trained.read(path) for path in folder.glob("*.safetensors")}
        return made[layout][case]

    return of


@pytest.fixture(scope="module")
def alone():
    """The same on one device, and on two in one process."""
    made = {}

    def of(case, towers, *devices):
        if (case, devices) not in made:
            made[case, devices] = attempt(case, towers, devices=list(devices))
        return made[case, devices]

    return of


@pytest.mark.parametrize(("layout", "case"), KEYS)
def test_every_layout_trains_the_same_network(found, alone, layout, case):
    theirs, ours = found(layout, case), alone(case, LAYOUTS[layout][1], "cpu")
    assert len(set(ours.losses)) == STEPS  # it learns, or there would be nothing to compare
    assert all(tensor.norm() > 0 for kind in (ours.gradients, ours.weights) for tensor in kind.values())
    assert theirs.gradients.keys() == ours.gradients.keys()
    precision = case.rpartition("-")[2]
    worst = differences(theirs, ours, precision == "float64")
    assert all(value <= most for value, most in zip(worst, TOLERANCES[precision], strict=True)), worst
    assert theirs.images == ours.images


@pytest.mark.parametrize("case", cases(2))
def test_two_processes_equal_two_devices_of_one_process_to_the_bit(found, alone, case):
    theirs, ours = found("two processes", case), alone(case, 2, "cpu", "cpu")
    assert theirs.losses == ours.losses
    assert all(torch.equal(theirs.gradients[name], tensor) for name, tensor in ours.gradients.items())
    assert all(torch.equal(theirs.weights[name], tensor) for name, tensor in ours.weights.items())


@pytest.mark.parametrize("layout", ["two processes", "2x2"])
@pytest.mark.parametrize("case", cases(2))
def test_the_collectives_of_a_step_are_the_tables(found, layout, case):
    trained = found(layout, case)
    assert A_STEP == {"all_gather": 3, "gather": 1, "reduce_scatter": 3, "scatter": 1}
    assert trained.collectives == {kind: count * STEPS for kind, count in A_STEP.items()}
    architecture, dtype = cases(2)[case]
    crossed = sum(trained.images) + sum(trained.padding)
    assert trained.bytes == architecture.bytes_exchanged(1) * crossed * dtype.itemsize // 4


@pytest.mark.parametrize(("layout", "case", "padding"), [
    ("two processes", "fashion-2-float64", 0),
    ("2x2", "fashion-2-float64", 1),
    ("three replicas of one tower", "fashion-1-float64", 2),
])  # fmt: skip
def test_a_batch_that_replicas_cannot_share_equally_is_padded(found, layout, case, padding):
    trained = found(layout, case)
    assert set(zip(trained.images, trained.padding, strict=True)) == {(BATCH, 0), (REST, padding)}


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
