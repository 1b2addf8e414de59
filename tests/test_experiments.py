"""The experiments run, and their claims hold where a test can say so: in bytes."""

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("overhead", "--preset lenet", "splitnet: error: --towers 2: lenet"),
        ("overhead", "--rounds 0", "splitnet: error: --rounds 0: at least 1"),
        ("memory", "--batch-size 0", "splitnet: error: --batch-size 0: at least 1"),
        ("overhead", "--batch-size 2 --rounds 1 --threads 1", "two towers, fake devices / plain CPU: "),
        ("memory", "--preset fashion --batch-size 2 --capacity-mb 0 --threads 1", "two devices  fake:1:"),
        ("profiling", "--rounds 0", "splitnet: error: --rounds 0: at least 1"),
        ("profiling", "--preset fashion --batch-size 2 --rounds 2 --threads 1", "recorded / not: "),
        ("alternation", "--rounds 1", "splitnet: error: --rounds 1: at least 2"),
        ("response_norm", "--rounds 0", "splitnet: error: --rounds 0: at least 1"),
        ("response_norm", "--batch-size 2 --rounds 1 --threads 1", "operator / formula: "),
        ("speed", "--rounds 0", "splitnet: error: --rounds 0: at least 1"),
        ("speed", "--only nobody", "splitnet: error: --only nobody: no such contender"),
        ("speed", "--picture x.png", "splitnet: error: --picture x.png: the picture is SVG"),
        ("speed", "--preset fashion --batch-size 2 --rounds 1 --threads 1 --only ours-whole,products", "share: "),
        ("growth", "--largest 1", "splitnet: error: --largest 1: at least 2"),
        (
            "growth",
            "--preset fashion --largest 4 --batch-size 2 --rounds 1 --threads 1",
            "towers by themselves / in one",
        ),
        ("overlap", "--machines gtx9000", "splitnet: error: --machine gtx9000: no such machine or file"),
        ("overlap", "--preset fashion --batch-size 2 --rounds 2 --threads 1 --machines gtx580-pcie2", "gtx580-pcie2 "),
        ("precision", "--scale wide --seeds 2", "splitnet: error: --scale wide: a fraction"),
        ("precision", "--scale 1/8 --steps 10 --seeds 2 --batch-size 4 --images 20 --threads 1", "bf16 on the wire"),
        ("prediction", "--preset fashion --batch-size 2 --rounds 2 --threads 1", "predicted / measured"),
        ("paper_times", "", "days"),
        ("input", "--rounds 0", "splitnet: error: --rounds 0: at least 1"),
        ("alternation", "--batch-size 2 --runs 2 --rounds 2 --threads 1", "the interval contains 1 in "),
    ],
)
def test_an_experiment_prints_its_figures(script, words, expected):
    command = [sys.executable, f"experiments/{script}.py", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert expected in done.stdout + done.stderr
    assert done.returncode == (2 if "error" in expected else 0)
    assert done.stderr.count("\n") == (1 if "error" in expected else 0)
