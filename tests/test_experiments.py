"""The experiments run, and their claims hold where a test can say so: in bytes."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layouts import small

from splitnet.testing import fake_devices  # noqa: F401

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_two_towers_need_little_more_than_half_the_memory():
    from experiments.memory import peaks
    from splitnet.network.presets import preset

    table = preset("alexnet", 2)
    [single] = peaks(table, ["fake:0"], 4).values()
    both = peaks(table, ["fake:0", "fake:1"], 4)
    assert set(both) == {"fake:0", "fake:1"}
    assert all(peak <= 0.55 * single for peak in both.values())
    assert single > 3 * 4 * table.parameters  # weights, gradients, velocity


@pytest.mark.slow
def test_the_largest_batch_is_the_last_that_fits():
    from experiments.memory import largest, peaks
    from splitnet.network.presets import preset

    table = preset("alexnet", 2).scaled(1 / 8, size=96)
    capacity = 40_000_000
    images = largest(table, ["fake:0"], capacity)
    assert max(peaks(table, ["fake:0"], images).values()) <= capacity
    assert max(peaks(table, ["fake:0"], images + 1).values()) > capacity


@pytest.fixture
def begun(monkeypatch, capsys, fake_devices):  # noqa: F811
    """Runs a script in this process, as Python begins it, on small networks: exit status, stdout, stderr."""
    threads = torch.get_num_threads()
    monkeypatch.setattr("splitnet.network.presets.preset", small)
    monkeypatch.setattr("splitnet.allocator.keep_freed_memory", lambda: "the allocator is left as it is")

    def begin(script, *words):
        path = str(ROOT / "experiments" / f"{script}.py")
        monkeypatch.setattr(sys, "argv", [path, *words])
        monkeypatch.setattr(sys, "path", [str(ROOT / "experiments"), *sys.path])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(path, run_name="__main__")
        return end.value.code or 0, *capsys.readouterr()

    yield begin
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("overhead", "--batch-size 2 --rounds 1 --threads 1", "two towers, two fake devices / plain CPU: "),
        ("memory", "--preset fashion --batch-size 2 --capacity-mb 0 --threads 1", "two devices  fake:1:"),
        ("profiling", "--preset fashion --batch-size 2 --rounds 2 --threads 1", "recorded / not: "),
        ("response_norm", "--batch-size 2 --rounds 1 --threads 1", "operator / formula: "),
        (
            "growth",
            "--preset fashion --largest 4 --batch-size 2 --rounds 1 --threads 1",
            "towers by themselves / in one",
        ),
        ("overlap", "--preset fashion --batch-size 2 --rounds 2 --threads 1 --machines gtx580-pcie2", "gtx580-pcie2 "),
        ("prediction", "--preset fashion --batch-size 2 --rounds 2 --threads 1", "predicted / measured"),
        ("alternation", "--batch-size 2 --runs 2 --rounds 2 --threads 1", "the interval contains 1 in "),
    ],
)
def test_an_experiment_prints_its_figures(begun, script, words, expected):
    code, out, err = begun(script, *words.split())
    assert expected in out
    assert (code, err) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("overhead", "--preset lenet", "--preset: invalid choice: 'lenet' (choose from 'fashion', "),
        ("overhead", "--rounds 0", "--rounds 0: at least 1"),
        ("memory", "--batch-size 0", "--batch-size 0: at least 1"),
        ("profiling", "--rounds 0", "--rounds 0: at least 1"),
        ("alternation", "--rounds 1", "--rounds 1: at least 2"),
        ("response_norm", "--rounds 0", "--rounds 0: at least 1"),
        ("speed", "--rounds 0", "--rounds 0: at least 1"),
        ("speed", "--only nobody", "--only nobody: no such contender"),
        ("speed", "--picture x.png", "--picture x.png: the picture is SVG"),
        ("growth", "--largest 1", "--largest 1: at least 2"),
        ("overlap", "--machines gtx9000", "--machines gtx9000: no such machine or file"),
        ("precision", "--scale wide --seeds 2", "--scale wide: a fraction"),
        ("input", "--rounds 0", "--rounds 0: at least 1"),
    ],
)
def test_an_experiment_refuses(begun, script, words, expected):
    code, _, err = begun(script, *words.split())
    assert code == 2
    assert err.startswith(f"splitnet: error: {expected}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("times", [1, 100_000])
def test_a_command_whose_reader_leaves_ends_quietly(times):
    code = f"from splitnet.options import guarded; guarded(lambda: print('a line ' * {times}))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [("paper_times", "", "days"), ("growth", "--largest 1", "splitnet: error: --largest 1: at least 2")],
)
def test_an_experiment_is_a_script(script, words, expected):
    """A process of its own; `growth` reads its neighbours."""
    command = [sys.executable, f"experiments/{script}.py", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert expected in done.stdout + done.stderr
    assert done.returncode == (2 if "error" in expected else 0)
    assert done.stderr.count("\n") == (1 if "error" in expected else 0)
