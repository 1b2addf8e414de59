"""One device, one process, two processes, two replicas of two: the same network from one seed."""

import pytest
import torch
from jobs import TESTS, torchrun
from layouts import relative
from rank_training import BATCH, IMAGES, STEPS, attempt, cases

pytestmark = pytest.mark.ranks

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
            made[layout] = {path.stem: torch.load(path) for path in folder.glob("*.pt")}
        return made[layout][case]

    return of


@pytest.fixture(scope="module")
def alone():
    """The same on one device, and on two in one process."""
    made = {}

    def of(case, towers, devices):
        if (case, devices) not in made:
            made[case, devices] = attempt(*cases(towers)[case], None, list(devices))
        return made[case, devices]

    return of


@pytest.mark.parametrize(("layout", "case"), KEYS)
def test_every_layout_trains_the_same_network(found, alone, layout, case):
    theirs, ours = found(layout, case), alone(case, LAYOUTS[layout][1], ("cpu",))
    exact = case.endswith("float64")
    assert len(ours["losses"]) == STEPS
    assert len(set(ours["losses"])) == STEPS  # it learns, or there would be nothing to compare
    if exact:
        assert (
            torch.tensor(theirs["losses"]).sub(torch.tensor(ours["losses"])).norm()
            <= 1e-12 * torch.tensor(ours["losses"]).norm()
        )
        assert theirs["test"] == pytest.approx(ours["test"], rel=1e-12)
    else:
        assert theirs["losses"] == pytest.approx(ours["losses"], abs=1e-4)
    for kind, tolerance in (("gradients", 1e-12 if exact else 1e-2), ("weights", 1e-12 if exact else 1e-4)):
        assert set(theirs[kind]) == set(ours[kind])
        for name, tensor in ours[kind].items():
            assert tensor.norm() > 0
            assert relative(theirs[kind][name], tensor) <= tolerance, (kind, name)
    assert theirs["images"] == ours["images"]
    assert theirs["accuracies"] == ours["accuracies"]


@pytest.mark.parametrize("case", cases(2))
def test_two_processes_equal_two_devices_of_one_process_to_the_bit(found, alone, case):
    theirs, ours = found("two processes", case), alone(case, 2, ("cpu", "cpu"))
    assert theirs["losses"] == ours["losses"]
    for kind in ("gradients", "weights"):
        assert all(torch.equal(theirs[kind][name], tensor) for name, tensor in ours[kind].items())


@pytest.mark.parametrize("layout", ["two processes", "2x2"])
@pytest.mark.parametrize("case", cases(2))
def test_the_collectives_of_a_step_are_the_tables(found, layout, case):
    trained = found(layout, case)
    per_step = {"all_gather": 3, "gather": 1, "reduce_scatter": 3, "scatter": 1}
    assert trained["collectives"] == {kind: count * STEPS for kind, count in per_step.items()}
    architecture, dtype = cases(2)[case]
    crossed = sum(trained["images"]) + sum(trained["padding"])
    derived = architecture.bytes_exchanged(1) * crossed * dtype.itemsize // 4
    assert trained["bytes"] == derived
    assert sum(size for *_, size in trained["exchanged"]) == derived


def test_a_batch_that_replicas_cannot_share_equally_is_padded(found):
    last = IMAGES % BATCH
    assert last % 2 == 1
    trained = found("2x2", "fashion-2-float64")
    assert {(images, padding) for images, padding in zip(trained["images"], trained["padding"], strict=True)} == {
        (BATCH, 0),
        (last, 1),
    }
    three = found("three replicas of one tower", "fashion-1-float64")
    assert {(images, padding) for images, padding in zip(three["images"], three["padding"], strict=True)} == {
        (BATCH, 0),
        (last, 2),
    }
