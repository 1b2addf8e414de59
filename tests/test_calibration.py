"""The machine at hand: every kind of work of a table gets a rate, and a step is put together from them alone."""

import os

import pytest
import torch

from splitnet.calibration import Calibration, _line, here
from splitnet.costs import Step, Work, pointwise, predict, products
from splitnet.network.presets import preset
from splitnet.parallel.fake.clocks import Link
from splitnet.peaks import parts

TABLE = preset("alexnet", 2).scaled(1 / 8, size=96).adapted(classes=10)


@pytest.fixture(scope="module")
def machine():
    before = torch.get_num_threads()
    yield here(TABLE, 8, "adam", threads=1, rounds=1)
    torch.set_num_threads(before)


def test_every_kind_of_work_has_a_rate(machine):
    wanted = {"adam", "images", "gather"}
    for part in parts(TABLE, 8, 0):
        wanted |= {work.name for work in products(part, 4)}
        wanted |= {work.name for pair in pointwise(part, 4) for work in pair}
    found = {name for name in machine.measured if not name.endswith(", weights")}
    assert found == wanted - {"conv1 input"}  # images have no gradient
    assert all(rate > 0 for rate in machine.measured.values())


def test_it_is_a_machine(machine):
    assert machine.name == "here"
    assert machine.gpu == "this CPU, 1 thread"
    assert 1e8 < machine.flops() < 1e13
    assert 1e7 < machine.bytes_per_second < 1e13
    assert (machine.link_bytes_per_second, machine.latency) == (Link().bytes_per_second, Link().latency)
    assert (machine.tf32, machine.bf16) == (None, None)
    assert machine.memory * TABLE.towers == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # they share it


def test_a_step_is_the_sum_of_its_parts():
    """Every operation takes a second by its own figure: a step takes as many seconds as it has operations."""
    calibration = Calibration(TABLE, 8, "sgd")
    works = [(part.row.name, work) for part in parts(TABLE, 8) for work in products(part, 4)]
    works += [(part.row.name, w) for part in parts(TABLE, 8) for pair in pointwise(part, 4) for w in pair]
    rest = [Work("images", 0, 13 * 8 * 3 * 96 * 96), Work("sgd", 0, 20 * TABLE.parameters)]
    works += [("", work) for work in [*rest, Work("gather", 0, 1)]]
    for row, work in works:
        key = (row, work.name, 8)
        calibration.works[key], calibration.times[key] = work, [1.0]
    step = predict("whole", TABLE, Step(8), calibration.machine(Link(1e18, 0.0)), 1)
    assert step.busy == pytest.approx(len(works) - 2)  # one device gathers nothing; images have no gradient


def test_a_line_tells_weights_from_images():
    work = Work("fc6 forward", flops=100, bytes=0, weights=30)
    assert _line(work, 5.0, None, 8) == {"fc6 forward": 20.0}
    assert _line(work, 5.0, 4.0, 8) == {
        "fc6 forward": 50.0,
        "fc6 forward, weights": 10.0,
    }  # 3 for weights, 2 for images
    assert _line(work, 5.0, 2.5, 8) == {"fc6 forward": 20.0}  # nothing but images
    assert _line(work, 5.0, 1.0, 8) == {"fc6 forward": 20.0}  # noise
    odd = _line(work, 5.0, 3.5, 5)  # half a second an image, of which there are 5 and 2
    assert odd == {"fc6 forward": pytest.approx(40.0), "fc6 forward, weights": pytest.approx(12.0)}
    noisy = _line(work, 5.0, 9.0, 8)  # as much: no batch is free
    assert noisy["fc6 forward"] == pytest.approx(200.0)
    for taken, half in ((5.0, 4.0), (5.0, 9.0), (5.0, 2.5)):
        found = _line(work, taken, half, 8)
        total = work.flops / found["fc6 forward"] + 30 / found.get("fc6 forward, weights", float("inf"))
        assert total == pytest.approx(taken)


def test_the_first_round_is_thrown_away_and_more_may_follow():
    calibration = Calibration(TABLE, 2, "sgd", side=48)
    for rounds in range(3):
        calibration.round()
        assert {len(times) for times in calibration.times.values()} == {rounds}


@pytest.mark.parametrize(("name", "towers"), [("lenet", 1), ("fashion", 4), ("caffe", 2)])
def test_other_tables_are_measured_too(name, towers):
    table = preset(name, towers)
    table = table.scaled(1 / 4) if name == "lenet" else table.scaled(1 / 16, size=table.size // 2)
    found = here(table, 2, "sgd", rounds=1)
    assert predict("replicas", table, Step(4), found, 2).seconds > 0
