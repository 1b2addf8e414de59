"""The command: what it prints can be read and is what the model says, and wrong input is one line."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from splitnet import calibration, machines
from splitnet.costs import Step, crossover, largest_batches, predicted
from splitnet.machines import MACHINES, machine
from splitnet.network.presets import preset
from splitnet.predict import main

GTX = MACHINES["gtx580-pcie2"]


@pytest.fixture
def run(capsys):
    """Runs the command: exit status, stdout, stderr."""

    def started(*words):
        code = main(list(words))
        return code, *capsys.readouterr()

    return started


def cells(out, name):
    """The line of a table that begins so, as words."""
    [line] = [line for line in out.splitlines() if line.strip().startswith(name)]
    return line.split()


def test_it_says_what_the_model_says(run):
    code, out, err = run("--memory", "3GB")
    assert (code, err) == (0, "")
    table = preset("alexnet", 2)
    of = predicted(table, Step(128), GTX)
    towers = of["towers"]
    assert cells(out, "2 towers ")[2] == f"{1000 * towers.seconds:.0f}"
    assert cells(out, "2 towers ")[3:7] == [
        f"{towers.images_per_second:.0f}",
        f"{1000 * towers.exposed:.2f}",
        "60.0",
        f"{towers.peak / 2**20:,.0f}",
    ]
    assert cells(out, "one device")[2] == f"{1000 * of['whole'].seconds:,.0f}"
    assert cells(out, "parameters")[1:4] == ["124", "108", "233"]
    assert cells(out, "conv3") == ["conv3", "173,056", "44,302,336"]
    assert cells(out, "all") == ["all", "234,496", "60,030,976"]
    words = " ".join(out.split())
    for overlap, how in ((False, "Without"), (True, "With")):
        meets = crossover(table, Step(128), GTX, overlap)
        assert (
            f"{how} overlap, replicas (data parallel) are as fast as towers or faster from a batch of {meets}" in words
        )
    assert "Largest batch: whose step fits 3,000,000,000 bytes of each device." in words
    plain, overlapped = (largest_batches(table, Step(128), 3e9, overlap) for overlap in (False, True))
    lines = ("2 towers ", "one device", "2 replicas", "dense, one", "half, one")
    for line, layout in zip(lines, ("towers", "whole", "replicas", "dense", "half"), strict=True):
        assert cells(out, line)[-1] == f"{plain[layout]:,}"
    with_overlap = [line.split()[-1] for line in out.splitlines() if line.strip().startswith("with overlap")]
    assert with_overlap == [f"{overlapped[layout]:,}" for layout in ("towers", "replicas")]


ASKED = [
    (),
    ("--preset", "fashion", "--towers", "4", "--machine", "h100-nvlink4", "--precision", "bf16", "--wire", "float16"),
    ("--preset", "caffe", "--optimizer", "adam", "--batch-size", "1"),
    ("--preset", "lenet", "--towers", "1", "--machine", "rtx4090-pcie4"),
    ("--machines",),
]


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_it_is_readable_at_80_columns(words, run):
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_assumptions_are_marked(run):
    _, out, _ = run()
    assert "float32 share *" in out
    assert "link share *" not in out  # measured by somebody
    assert "tensor share" not in out  # there are none
    assert "* Assumed: " in out
    _, modern, _ = run("--machine", "h100-pcie4")
    assert "tensor share *" in modern


def test_every_machine_is_listed(run):
    _, out, _ = run("--machines")
    assert [line.split()[0] for line in out.splitlines() if "-pcie" in line or "-nvlink" in line] == list(MACHINES)


def test_as_data(run):
    code, out, _ = run("--json", "--batch-size", "64")
    found = json.loads(out)
    assert code == 0
    assert set(found["layouts"]) == {
        *("towers", "whole", "replicas", "dense", "half", "towers, overlap", "replicas, overlap")
    }
    towers = predicted(preset("alexnet", 2), Step(64), GTX)["towers"]
    assert found["layouts"]["towers"] == towers.as_dict()
    assert found["crossover"]["overlap"] < found["crossover"]["plain"]
    assert found["largest_batch"]["towers"] > found["largest_batch"]["whole"]
    assert set(found["largest_batch"]) == set(found["layouts"])


def test_a_machine_is_written_and_read(run, tmp_path):
    path = tmp_path / "mine.json"
    code, out, _ = run("--machine", "h100-pcie4", "--write", str(path))
    assert (code, out.splitlines()[-1]) == (0, f"Written: {path}")
    assert machine(str(path)) == MACHINES["h100-pcie4"]
    description = json.loads(path.read_text()) | {"link": 1e9}
    path.write_text(json.dumps(description))
    slow, fast = (json.loads(run("--json", "--machine", name)[1]) for name in (str(path), "h100-pcie4"))
    assert slow["layouts"]["towers"]["exposed_ms"] > 20 * fast["layouts"]["towers"]["exposed_ms"]
    assert slow["layouts"]["whole"]["busy_ms"] == fast["layouts"]["whole"]["busy_ms"]


WRONG = [
    (("--machine", "gtx9000"), "--machine gtx9000: no such machine or file (there are gtx580-pcie2, "),
    (("--machine", "g" * 300), f"--machine {'g' * 300}: no such machine or file (there are gtx580-pcie2, "),
    (("--precision", "bf16"), "--precision bf16: gtx580-pcie2 has no such units (it has float32)"),
    (("--preset", "alexnet-half"), "--towers 2: alexnet-half is the network of one GPU"),
    (("--towers", "3"), "--towers 3: conv2 has 256 channels"),
    (("--batch-size", "0"), "--batch-size 0: at least 1"),
    (("--memory", "much"), "--memory much: a size such as"),
    (("--memory", "-3GB"), "--memory -3GB: a size such as"),
    (("--memory", "3"), "--memory 3: is 3 bytes; give a unit, such as 3GB"),
    (("--machine", ""), "--machine '': no such machine or file (there are gtx580-pcie2, "),
    (("--write", "/dev/null"), "--write /dev/null: is there already"),
    (("--wire", "int8"), "--wire: invalid choice: 'int8'"),
    (("--write", "/nowhere/x.json"), "--write /nowhere/x.json: cannot be written"),
    (("--crosses", "conv9"), "--crosses conv9: conv9 is no row of alexnet"),
]


@pytest.mark.parametrize(("words", "text"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_input_is_one_line(words, text, run):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"splitnet: error: {text}")
    assert err.count("\n") == 1


def test_a_machine_without_a_figure_is_one_line(run, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps({"float32": 1e12, "memory_bandwidth": -1, "memory": 1e9, "link": 1e9}))
    code, out, err = run("--machine", str(path))
    assert (code, out) == (2, "")
    assert err == f"splitnet: error: --machine {path}: memory_bandwidth is -1, not a number above 1000, at most 1e+18\n"


def test_here_is_measured_for_what_was_asked(run, monkeypatch):
    asked = []

    def here(*args):
        asked.append(args)
        return MACHINES["k40-pcie3"]

    monkeypatch.setattr(calibration, "here", here)
    options = ("--machine", "here", "--batch-size", "8", "--threads", "3", "--optimizer", "adam", "--json")
    found = json.loads(run(*options)[1])
    assert asked == [(preset("alexnet", 2), 8, "adam", 3)]
    assert found["machine"] == "k40-pcie3"


@pytest.mark.slow
def test_as_a_command():
    words = [sys.executable, "-m", "splitnet.predict", "--machine", "none"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("splitnet: error: --machine none: ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--machines --json", "--machines: lists them, so not with --json"),
        ("--machines --machine k40-pcie3 --memory 3GB", "--machines: lists them, so not with --machine, --memory"),
        ("--wire bf16 --towers 1", "--wire bf16: nothing crosses with --towers 1"),
        ("--threads 2", "--threads 2: is for --machine here, not gtx580-pcie2"),
        ("--machine /dev/null", "--machine /dev/null:"),
    ],
)
def test_what_would_be_ignored_is_refused(words, line, capsys):
    assert main(words.split()) == 2
    assert capsys.readouterr().err.startswith(f"splitnet: error: {line}")


def test_text_of_a_machine_is_no_markup(tmp_path, capsys):
    path = tmp_path / "markup.json"
    named = replace(MACHINES["gtx580-pcie2"], name="[/x]", gpu="[red]R[/foo]", sources={"float32": "[/b] data sheet"})
    path.write_text(machines.as_json(named))
    assert main(["--machine", str(path)]) == 0
    out = capsys.readouterr().out
    assert "[/x]: [red]R[/foo]" in out
    assert "[/b] data sheet" in out


def test_a_peak_that_does_not_fit_is_marked(capsys):
    assert main(["--batch-size", "65536"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"one device .* [\d,]+ ! +[\d,]+\s*$", out, flags=re.M)
    assert "! More than a device has" in out
    assert main([]) == 0
    assert "!" not in capsys.readouterr().out
