"""The traces of a run, read by others: the figures that torch-tb-profiler shows are the clocks' own."""

import gzip
import json
import threading
import warnings
from itertools import pairwise

import pytest
import torch
from browser import Browser
from test_measure_lanes import DEVICES, profiled

from splitnet.measure import perfetto, plugin_copy, timeline, traces
from splitnet.measure.profiler import Profile
from splitnet.parallel import fake

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is abandoned, and imports what is deprecated
    from torch_tb_profiler.profiler.data import RunProfileData
    from torch_tb_profiler.profiler.run_generator import RunGenerator

pytestmark = pytest.mark.slow  # trains under the profiler, and imports the viewer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with both traces, and nothing else."""
    path = tmp_path_factory.mktemp("run")
    try:
        assert traces.write(profiled(DEVICES)[2], path)
    finally:
        fake.reset()
    return path


def load(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def shown(folder):
    """What the plugin's pages are made of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = RunProfileData.parse("splitnet", 1, str(folder / traces.PLUGIN), str(folder / "cache"))
        data.process()
        data.analyze()
        return data, RunGenerator("splitnet", 1, data).generate_run_profile()


def shares(folder, kind):
    """By device, of all profiled steps, in per cent."""
    sums = load(folder / traces.PLUGIN)["splitnet"]["clock"]
    return [
        100
        * sum(s[kind] for s in sums if s["device"] == device)
        / sum(s["total"] for s in sums if s["device"] == device)
        for device in (0, 1)
    ]


def test_utilization_is_the_clocks_busy_share(folder, shown):
    data, _ = shown
    found = [100 * data.gpu_metrics_parser.gpu_utilization[device] for device in (0, 1)]
    assert found == pytest.approx(shares(folder, "busy"), abs=0.01)


def test_the_plugin_sees_every_step(folder, shown):
    data, profile = shown
    steps = load(folder / traces.PLUGIN)["splitnet"]["steps"]
    assert len(data.steps_names) == len(steps) == 3
    average = sum(step["length"] for step in steps) / len(steps)
    assert data.avg_costs.costs[-1] == pytest.approx(average, abs=2)
    assert "DataLoader" in json.dumps(profile.overview)
    assert {"Overview", "Operator", "Kernel", "Trace", "Memory"} <= {view.display_name for view in profile.views}


def test_reading_images_counts_as_loading(folder):
    """Twice a step: where a batch is read, and where it is sent to the devices."""
    names = [e["name"] for e in load(folder / traces.PLUGIN)["traceEvents"]]
    assert names.count("enumerate(DataLoader)#splitnet.data.__next__") == 2 * 3


def test_steps_do_not_touch_on_the_cpu(folder):
    """The plugin takes two that do for ranges that intersect."""
    events = load(folder / traces.PLUGIN)["traceEvents"]
    steps = sorted((e for e in events if e["name"].startswith("ProfilerStep#")), key=lambda e: e["ts"])
    gaps = [after["ts"] - before["ts"] - before["dur"] for before, after in pairwise(steps)]
    assert len(gaps) == 2
    assert min(gaps) > 0.5


def test_time_of_operators_is_the_devices_work(folder, shown):
    data, _ = shown
    sums = load(folder / traces.PLUGIN)["splitnet"]["clock"]
    found = sum(op.self_device_duration for op in data.op_list_groupby_name)
    copies = [e for e in load(folder / traces.PLUGIN)["traceEvents"] if e.get("cat") == "gpu_memcpy"]
    ends = [(e, e["args"]["fromDevice"], e["args"]["toDevice"]) for e in copies]
    once = sum(e["dur"] for e, source, target in ends if e["pid"] == (target if source is None else source))
    assert once > 100
    assert found == pytest.approx(sum(s["busy"] for s in sums) + once, abs=20)


def test_kernels_name_their_device(shown):
    data, _ = shown
    assert {str(name).partition(" [")[2] for name in data.kernel_stat.index} >= {"fake:0]", "fake:1]"}


def test_the_exchanges_of_a_split_copy_do_not_overlap(folder):
    """A device that arrives at one when the last is over arrives a nanosecond early, rounded."""
    parts = plugin_copy.split(load(folder / traces.PLUGIN))
    assert set(parts) == {"fake_0", "fake_1"}
    for part in parts.values():
        ranges = [e for e in part["traceEvents"] if e["name"].startswith("gloo:")]
        ends = [(round(1000 * e["ts"]), round(1000 * e["ts"]) + round(1000 * e["dur"])) for e in ranges]
        assert len(ends) == 3 * 8
        assert all(a[1] <= b[0] for a, b in pairwise(sorted(ends)))


PROBLEMS = """select 'problems ' || count(*) || ': ' || ifnull(group_concat(name), 'none')
    from stats where severity in ('error', 'data_loss') and value > 0"""


def problems(path):
    """What Perfetto says of a trace that it has read."""
    with perfetto.Perfetto(path, timeline.read(path)) as server, Browser() as browser:
        server.startup = [{"id": "dev.perfetto.RunQueryAndShowTab", "args": [" ".join(PROBLEMS.split())]}]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = "document.body.innerText.match(/problems \\d+: \\S+/)?.[0]"
        page = browser.open(server.url, width=1500, height=900)
        page.wait(found, 60)
        said = page.evaluate(found)
        server.shutdown()
    return said


@pytest.mark.parametrize("name", [traces.PERFETTO, traces.PLUGIN])
def test_perfetto_reads_it_without_an_error(folder, name):
    assert problems(folder / name) == "problems 0: none"


def test_perfetto_says_what_it_drops(folder, tmp_path):
    trace = load(folder / traces.PERFETTO)
    kernel = next(e for e in trace["traceEvents"] if e.get("cat") == "kernel")
    trace["traceEvents"].append({**kernel, "ts": kernel["ts"] + kernel["dur"] / 2})
    traces.save(trace, tmp_path / "overlap.json.gz")
    assert problems(tmp_path / "overlap.json.gz").startswith("problems 1: slice_drop_overlapping_complete_event")


def test_no_trace_where_no_step_was_whole(tmp_path):
    with Profile([torch.device("cpu")]) as profile:
        pass
    assert not traces.write(profile, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_devices_are_named_by_index():
    assert traces.names([torch.device("cuda", 1)]) == ["cuda:0", "cuda:1"]
    assert traces.names([torch.device("cpu")]) == []
