"""`python -m splitnet.view`: what it serves, to whom, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import two_lanes
from browser import Browser

from splitnet.errors import UsageError
from splitnet.measure import perfetto, scalars, timeline
from splitnet.view import logs, main

ROOT = Path(__file__).parent.parent
PERFETTO_ASKS = "https://storage.cloud.google.com/perfetto-ui-internal/"
"""Perfetto's own page asks this for whether its user works at Google; the policy of our server stops it."""


@pytest.fixture
def run(tmp_path):
    return two_lanes.run_folder(tmp_path / "20260101-000000-fashion-2x2")


def contents(folder):
    return {p.relative_to(folder): (p.is_file() and p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*")}


def heeding_ctrl_c():
    """As in a terminal: a shell has what it starts in the background ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class View:
    """The command, started; `url` is what it printed."""

    def __init__(self, words, temporary):
        environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
        strict = [] if "--tensorboard" in words else ["-W", "error"]  # TensorBoard's parts warn of each other
        self.process = subprocess.Popen(
            [sys.executable, *strict, "-m", "splitnet.view", *map(str, words)],
            cwd=ROOT,
            env=environment | {"TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heeding_ctrl_c,
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("Ctrl-C"):
                break
        self.url = next((line for line in self.lines if line.startswith("http://")), "")
        self.port = int(re.match(r"http://127\.0\.0\.1:(\d+)/|$", self.url)[1] or 0)

    def end(self, number=signal.SIGINT):
        """As a terminal does: to the whole group. The exit status, and what it still said."""
        os.killpg(self.process.pid, number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextmanager
def viewing(words, temporary):
    temporary.mkdir(exist_ok=True)
    view = View(words, temporary)
    try:
        assert view.url, view.process.communicate(timeout=20)
        yield view
    finally:
        if view.process.poll() is None:
            os.killpg(view.process.pid, signal.SIGKILL)
            view.process.communicate()


def get(url, method="GET", **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=20) as answer:
        return answer.read(), answer.headers


def status(url, method="GET", **headers):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        get(url, method, **headers)
    with refusal.value:
        return refusal.value.code


def no_folder(run):
    return [run / "nothing"], "nothing: no such folder"


def a_file(run):
    return [run / "trace.json.gz"], "trace.json.gz: not a folder"


def no_trace(run):
    (run / "trace.json.gz").unlink()
    return [run], "trace.json.gz"


def truncated(run):
    path = run / "trace.json.gz"
    path.write_bytes(path.read_bytes()[:-200])
    return [run], "trace.json.gz"


def no_json(run):
    two_lanes.save([1], run / "trace.json.gz")
    return [run], "trace.json.gz"


def newer(run):
    trace = two_lanes.trace()
    trace["splitnet"]["schema"] = 99
    two_lanes.save(trace, run / "trace.json.gz")
    return [run], "trace.json.gz"


def no_copy(run):
    (run / "tensorboard" / "splitnet.pt.trace.json.gz").unlink()
    return [run, "--tensorboard"], "tensorboard: no *.pt.trace.json.gz in it"


def broken_copy(run):
    path = run / "tensorboard" / "splitnet.pt.trace.json.gz"
    path.write_bytes(path.read_bytes()[:-200])
    return [run, "--tensorboard", "--split"], "splitnet.pt.trace.json.gz"


def split_alone(run):
    return [run, "--split"], "--split: only with --tensorboard"


def no_port(run):
    return [run, "--port", "70000"], "--port 70000: at most 65535"


BAD = [no_folder, a_file, no_trace, truncated, no_json, newer, no_copy, broken_copy, split_alone, no_port]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_the_folder(case, run, capsys):
    words, expected = case(run)
    before = contents(run)
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("splitnet: error: ")
    assert expected in err
    assert contents(run) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number, run, tmp_path):
    with viewing([run, "--port", "0"], tmp_path / "temporary") as view:
        assert view.end(number) == (0, "Closed.\n", "")


def test_it_listens_on_loopback_alone(run, tmp_path):
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("needs Linux's /proc to see who listens")
    with viewing([run, "--port", "0"], tmp_path / "temporary") as view:
        wanted = f":{view.port:04X}"
        local = [line.split()[1] for line in table.read_text().splitlines() if line.split()[1].endswith(wanted)]
    assert local
    assert set(local) == {f"0100007F{wanted}"}


def test_a_port_in_use_is_passed_over_and_said(run, tmp_path):
    with perfetto.listen(0) as taken:
        port = taken.getsockname()[1]
        with viewing([run, "--port", port], tmp_path / "temporary") as view:
            assert view.port > port
            assert view.lines[0] == f"Port {port} is in use; this is {view.port}."


def test_no_port_left(monkeypatch):
    monkeypatch.setattr(perfetto, "TRIES", 1)
    with perfetto.listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: in use"):
            perfetto.listen(port)


def test_only_the_page_and_the_trace_are_served(run, tmp_path):
    with viewing([run, "--port", "0"], tmp_path / "temporary") as view:
        root = f"http://127.0.0.1:{view.port}"
        assert get(f"{root}/localtrace")[0] == (run / "trace.json.gz").read_bytes()
        assert json.loads(get(f"{root}/vizviewer_info")[0]) == json.loads(get(f"{root}/file_info")[0]) == {}
        assert view.url == f"{root}/timeline"  # what is printed fits a line
        page, headers = get(root)
        assert b"Perfetto" in page
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert status(f"{root}/service_worker.js") == 404  # it would outlive the server
        assert status(f"{root}/../../pip/__init__.py") == 404
        assert status(f"{root}/%2e%2e/__init__.py") == 404
        assert status(f"{root}/v52.0-6b9586def/assets/") == 404
        assert status(root, Host="attacker.example") == 403
        assert status(root, method="HEAD", Host="attacker.example") == 403
        assert b"Perfetto" in get(root, Host="127.0.0.1")[0]  # as browsers say it of port 80
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(root, data=b"x", timeout=20)
        with refusal.value:
            assert refusal.value.code == 501


def test_each_device_of_each_process_gets_a_file(run, tmp_path):
    folder = run / "tensorboard"
    (folder / "events").mkdir()
    (folder / "events" / "scalars").write_text("x")
    logs(run, tmp_path / "whole", split=False)
    logs(run, tmp_path / "one", split=True)
    (folder / "splitnet.pt.trace.json.gz").rename(folder / "rank_0.pt.trace.json.gz")
    bare = {"traceEvents": two_lanes.trace(plugin=True)["traceEvents"]}
    two_lanes.save(bare, folder / "rank_1.pt.trace.json.gz")  # torch.profiler's own has no entry of ours
    logs(run, tmp_path / "two", split=True)

    def names(where):
        return sorted(path.name.removesuffix(".pt.trace.json.gz") for path in (where / run.name).iterdir())

    assert names(tmp_path / "whole") == ["events", "splitnet"]
    assert names(tmp_path / "one") == ["events", "fake_0", "fake_1"]
    assert names(tmp_path / "two") == [
        "events",
        *(f"rank_{r}_{d}" for r, d in [(0, "fake_0"), (0, "fake_1"), (1, "cuda_0"), (1, "cuda_1")]),
    ]
    part = timeline.read(tmp_path / "one" / run.name / "fake_1.pt.trace.json.gz")
    assert {e["pid"] for e in part["traceEvents"] if e.get("cat") == "kernel"} == {1}


def test_startup_names_the_devices_and_counts_a_copy_once():
    expand, table = perfetto.startup(two_lanes.trace())
    pattern = expand["args"][0]
    assert re.match(pattern, "fake:0 (emulated) 0")
    assert re.match(pattern, "fake:1 (emulated) 1")
    assert not re.match(pattern, "host CPU 900")
    assert "when 1 then 'fake:1'" in table["args"][0]
    assert "select distinct" in table["args"][0]


def test_a_quote_in_a_devices_name_stays_in_the_query():
    trace = two_lanes.trace()
    trace["splitnet"]["devices"] = ["it's"]
    assert "then 'it''s'" in perfetto.startup(trace)[1]["args"][0]


def test_a_trace_without_devices_has_no_track_to_open():
    trace = {"traceEvents": []}
    assert [command["id"] for command in perfetto.startup(trace)] == ["dev.perfetto.RunQueryAndShowTab"]


@pytest.mark.slow
def test_perfetto_shows_both_devices_and_the_exchanges(run, tmp_path):
    with viewing([run, "--port", "0"], tmp_path / "temporary") as view, Browser() as browser:
        page = browser.open(view.url, width=1500, height=900)
        page.wait("document.body.innerText.includes('4096')", 60)
        text = page.evaluate("document.body.innerText")
        page.screenshot(tmp_path / "perfetto.png")
    rows = re.findall(r"(ProfilerStep#\d)\s+(\w+)\s+(\w+)\s+(fake:\d)\s+(fake:\d)\s+(\d+)\s+([\d.]+)", text)
    there = ("conv3", "forward", "fake:1", "fake:0", "4096", "0.1")
    back = ("conv3", "backward", "fake:0", "fake:1", "1024", "0.05")
    assert [row[1:] for row in rows] == [there, back] * 2
    assert [row[0] for row in rows] == ["ProfilerStep#0"] * 2 + ["ProfilerStep#1"] * 2
    assert text.count("compute 107") >= 2  # a track of an opened group
    assert "fake:1 (emulated)" in text.replace("\n", "")
    assert all(url.startswith(PERFETTO_ASKS) for url in page.outside)
    assert "/localtrace" in " ".join(page.requests)


FRAME = "document.querySelector('iframe')?.contentDocument"


def choose(page, view):
    """Another view of the plugin, by its list of views."""
    page.evaluate(
        f"[...{FRAME}.querySelectorAll('[aria-haspopup=listbox]')].find(x => /^({'|'.join(VIEWS)})/.test(x.innerText))"
        ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true, button: 0}))"
    )
    page.wait(f"{FRAME}.querySelector('[role=option]')")
    page.evaluate(f"[...{FRAME}.querySelectorAll('[role=option]')].find(x => x.innerText == '{view}').click()")


VIEWS = {
    "Overview": ("Step Time Breakdown", 2),
    "Operator": ("Device Self Time (us)", 4),
    "GPU Kernel": ("Total Time (us)", 1),
    "Distributed": ("Communication Operations Stats", 2),
    "Trace": ("", 0),
}
"""What each view says, and how many charts it draws at least."""


@pytest.mark.slow
def test_tensorboard_draws_every_view_without_a_network(run, tmp_path):
    before = contents(run)
    temporary = tmp_path / "temporary"
    with viewing([run, "--tensorboard", "--split", "--port", "0"], temporary) as view, Browser() as browser:
        page = browser.open(view.url, width=1500, height=1000)
        page.wait(f"{FRAME}?.body?.innerText.includes('GPU Utilization')", 60)
        for name, (said, charts) in VIEWS.items():
            choose(page, name)
            page.wait(f"{FRAME}.body.innerText.includes({json.dumps(said)})", 20)
            page.wait(f"{FRAME}.querySelectorAll('svg[role=img]').length >= {charts}", 20)
            page.screenshot(tmp_path / f"{name.replace(' ', '-')}.png")
            if name == "Overview":
                assert "fake:0 (emulated)" in page.evaluate(f"{FRAME}.body.innerText")
                assert "60.03 %" in page.evaluate(f"{FRAME}.body.innerText")  # 1,200 us of 1,999
            if name == "Distributed":
                assert page.evaluate(f"{FRAME}.body.innerText").count("fake:1 (emulated)") == 1
        inner = f"{FRAME}.querySelector('iframe').contentDocument?.querySelector('iframe')?.src"
        assert page.wait(inner, 20).startswith("http://127.0.0.1:")
        assert all(url.startswith(PERFETTO_ASKS) for url in page.outside)
        assert not [error for error in page.errors if "google" in error and "storage.cloud" not in error]
        assert len(list(temporary.iterdir())) == 1
        children = Path(f"/proc/{view.process.pid}/task/{view.process.pid}/children")
        assert not children.exists() or children.read_text() == ""
        assert view.end() == (0, "Closed.\n", "")
    assert list(temporary.iterdir()) == []
    assert contents(run) == before


@pytest.mark.slow
def test_a_run_without_a_trace_has_its_scalars_still(run, tmp_path):
    """As of --no-profile: what TensorBoard has is shown, and Perfetto has nothing to."""
    (run / "trace.json.gz").unlink()
    (run / "tensorboard" / "splitnet.pt.trace.json.gz").unlink()
    scalars.write(
        run / "tensorboard", [{"kind": "step", "step": 0, "loss": 1, "accuracy": 1, "images": 1, "seconds": 1}]
    )
    with viewing([run, "--tensorboard", "--port", "0"], tmp_path / "temporary") as view:
        assert view.url == f"http://127.0.0.1:{view.port}/"
        tags = json.loads(get(f"{view.url}data/plugin/scalars/tags")[0])
    assert {"train/loss", "train/accuracy"} <= set(next(iter(tags.values())))
