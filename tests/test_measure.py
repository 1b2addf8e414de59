"""Clocks, counters and the run folder."""

import json
import math
import random
import subprocess
import sys
import time

import pytest
import torch

from splitnet.errors import UsageError
from splitnet.measure import meter
from splitnet.measure.meter import (
    STUDENT_99,
    Layout,
    OtherLoad,
    Peak,
    Ratio,
    Sample,
    Spread,
    alternate,
    ratio,
    sizes,
)
from splitnet.measure.records import RunFolder, environment, plain, read_steps
from splitnet.parallel import fake

CPU = torch.device("cpu")


def test_layouts_take_turns():
    made = []
    layouts = [Layout(name, (CPU,), lambda n, name=name: made.append((name, n))) for name in "ABC"]
    for number in (5, 6):
        samples = alternate(layouts, number)
    assert made == [("A", 5), ("B", 5), ("C", 5), ("A", 6), ("B", 6), ("C", 6)]
    assert set(samples) == set("ABC")
    assert samples["A"].device is None


def test_a_sample_times_its_own_step_alone():
    samples = alternate([Layout("slow", (CPU,), lambda _: time.sleep(0.05)), Layout("fast", (CPU,), lambda _: None)], 0)
    assert samples["slow"].wall >= 0.05
    assert samples["fast"].wall < 0.05


def test_an_emulated_step_takes_as_long_as_its_busiest_device():
    fake.install(2)
    one, two = torch.ones(400, 400, device="fake:0"), torch.ones(400, 400, device="fake:1")
    before = fake.clock("fake:0"), fake.clock("fake:1")

    def step(_):
        for _ in range(20):
            one @ one
        two @ two

    sample = alternate([Layout("both", (one.device, two.device), step)], 0)["both"]
    assert before is not None
    assert 0 < sample.device < sample.wall
    torch.fake.synchronize()
    assert fake.clock("fake:0") == pytest.approx(fake.clock("fake:1"))


def test_ratio_is_taken_round_by_round():
    slow, fast = [Sample(s, None) for s in (2.0, 4.0, 9.0)], [Sample(s, None) for s in (1.0, 4.0, 3.0)]
    found = ratio(fast, slow)
    assert (found.median, found.least, found.greatest, found.n) == (2.0, 1.0, 3.0, 3)
    assert found.low < 1 < found.high


def test_spread():
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)


def test_a_peak_does_not_count_what_was_there_before():
    fake.install(2)
    device = torch.device("fake:0")
    resting = torch.zeros(1000, device=device)
    peak = Peak([device, CPU, device])
    gone = torch.zeros(2000, device=device)
    del gone
    kept = torch.zeros(500, device=device)
    assert peak.bytes() == {device: 8000}
    assert sizes([resting, kept, torch.zeros(3)]) == {device: 6000, CPU: 12}


def test_a_folder_is_made_once_each_time(tmp_path):
    first, second = (RunFolder.create(tmp_path / "new", "fashion-2x2") for _ in range(2))
    assert first.path != second.path
    assert first.path.name.endswith("-fashion-2x2")


def test_records_are_whole_lines_at_once(tmp_path):
    folder = RunFolder.create(tmp_path, "x")
    folder.append("step", {"step": 0, "loss": 2.5})
    folder.append("test", {"accuracy": 0.5})
    records = read_steps(folder.path / "steps.jsonl")  # before anything is closed
    assert records[0] == {"schema": 1, "kind": "step", "step": 0, "loss": 2.5}
    assert records[1]["kind"] == "test"
    folder.close()


def test_a_file_is_replaced_in_one_piece(tmp_path):
    folder = RunFolder.create(tmp_path, "x")
    folder.write("run", {"status": "running", "spread": Spread.of([1.0]), "out": tmp_path})
    folder.write("run", {"status": "finished"})
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]
    assert json.loads((folder.path / "run.json").read_text()) == {"schema": 1, "status": "finished"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=rf"--out {tmp_path}/file/runs: cannot write there"):
        RunFolder.create(tmp_path / "file" / "runs", "x")


def test_plain_is_what_json_knows():
    assert plain({"a": Spread.of([1.0]), 2: (CPU, None)})["2"] == ["cpu", None]
    json.dumps(plain(environment()))


def test_environment_names_what_a_figure_depends_on():
    assert {"command", "python", "packages", "commit", "machine", "load"} <= set(environment())
    assert environment()["packages"]["torch"] == torch.__version__.partition("+")[0]


# Intervals of paired ratios


def test_the_interval_of_known_ratios():
    """Ratios e**-1, 1, e: the logarithms' mean is 0, their deviation 1, Student's point 9.925."""
    found = Ratio.of([math.e, 1.0, 1 / math.e])
    assert (found.median, found.least, found.greatest, found.n) == (1.0, 1 / math.e, math.e, 3)
    assert found.high == pytest.approx(math.exp(9.925 / math.sqrt(3)))
    assert found.low == pytest.approx(1 / found.high)


def test_one_pair_has_no_interval():
    assert (Ratio.of([2.0]).low, Ratio.of([2.0]).high) == (None, None)


def test_the_interval_holds_what_it_promises():
    """Of 2,000 experiments with 5 pairs each and no difference, 1 lies outside about 1 % of the intervals."""
    generator = random.Random(0)
    outside = 0
    for _ in range(2000):
        found = Ratio.of(math.exp(generator.gauss(0, 0.1)) for _ in range(5))
        outside += not found.low <= 1 <= found.high
    assert 8 <= outside <= 34


def test_points_of_students_distribution():
    """Each leaves half a per cent above it: the density is added up numerically."""
    for degrees, point in enumerate(STUDENT_99, start=1):
        scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
        steps, width = 20000, point / 20000
        inside = sum(scale * (1 + ((i + 0.5) * width) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(steps))
        assert inside * width == pytest.approx(0.495, abs=2e-5)


def test_other_processes_are_seen():
    load = OtherLoad()
    child = subprocess.Popen([sys.executable, "-c", "import time; e = time.time() + 5\nwhile time.time() < e: pass"])
    try:
        time.sleep(1.5)
        busy = load.cores()
    finally:
        child.kill()
        child.wait()
    if busy is None:
        pytest.skip("this system does not say how much its processes compute")
    assert busy > 0.3


def test_its_own_work_is_not_other_load(monkeypatch):
    """All computed 6 s and this process 4 s of them, in 4 s: half a core was somebody else's."""
    told = iter([(10.0, 2.0, 100.0), (16.0, 6.0, 104.0)])
    monkeypatch.setattr(meter, "_cpu_seconds", lambda: next(told))
    assert OtherLoad().cores() == 0.5


def test_too_short_a_time_says_nothing():
    assert OtherLoad().cores() is None
