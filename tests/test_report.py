"""`python -m splitnet.report`: pages again, two runs compared, a gate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from quick import quick

from splitnet import pages, report
from splitnet.errors import UsageError
from splitnet.measure.pictures import NAMES
from splitnet.measure.summary import summarise
from splitnet.pages import write_pages


@pytest.fixture(autouse=True)
def without_page(monkeypatch):
    """report.html has tests of its own, and takes 5 MB each time."""
    for module in (pages, report):
        monkeypatch.setattr(module, "has_page", lambda: False)


@pytest.fixture
def folder(tmp_path):
    return runs.write(tmp_path / "first")


@pytest.fixture
def slower(tmp_path):
    return runs.write(tmp_path / "second", compare=runs.comparison(images_per_second=runs.spread(8.0, 7.0, 9.0)))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ran(capsys, *words):
    code = report.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


PAGES = {"report.md", *(f"pictures/{name}" for name in NAMES)}


def test_pages_are_made_in_the_run_folder(folder, capsys):
    before = contents(folder)
    code, out, err = ran(capsys, folder)
    assert (code, err) == (0, "")
    after = contents(folder)
    assert set(after) - set(before) == PAGES
    assert {name: after[name] for name in before} == before
    assert out.startswith("Two towers on fake:0 and fake:1 (emulated) train 2.00 times")
    assert f"Page: {folder}/report.md" in out
    assert all(len(line) <= 80 for line in out.splitlines() if str(folder) not in line)


def test_pages_are_made_elsewhere(folder, tmp_path, capsys):
    before = contents(folder)
    assert ran(capsys, folder, "--out", tmp_path / "new" / "place")[0] == 0
    assert contents(folder) == before
    assert set(contents(tmp_path / "new" / "place")) == PAGES


def test_pages_are_the_same_when_made_again(folder, capsys):
    ran(capsys, folder)
    before = contents(folder)
    ran(capsys, folder)
    assert contents(folder) == before


def test_without_plotly_the_rest_is_made_and_said(folder, capsys):
    _, out, _ = ran(capsys, folder)
    assert "report.html: not made; it needs plotly (pip install plotly)" in out
    assert not (folder / "report.html").exists()


def test_a_truncated_trace_is_said_and_the_rest_made(folder, capsys):
    trace = folder / "trace.json.gz"
    trace.write_bytes(trace.read_bytes()[:-30])
    write_pages(folder)  # pictures of an earlier state are no more wanted
    (folder / "pictures" / "timeline.svg").write_text("old")
    code, out, _ = ran(capsys, folder)
    assert code == 0
    assert f"Left out: {trace}:" in out
    assert not (folder / "pictures" / "timeline.svg").exists()
    assert str(trace) in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: (folder / "run.json").unlink(), "holds no run.json"),
        (lambda folder: (folder / "run.json").write_text('{"schema": 1, "sta'), "run.json: no whole JSON"),
        (lambda folder: (folder / "run.json").write_text('{"schema": 2}'), "run.json: schema 2"),
        (lambda folder: (folder / "compare.json").write_text('{"schema": 9}'), "compare.json: schema 9"),
    ],
)
def test_what_is_no_run_is_one_line_and_left_alone(folder, capsys, harm, says):
    harm(folder)
    before = contents(folder)
    code, out, err = ran(capsys, folder)
    assert (code, out) == (2, "")
    assert err.startswith("splitnet: error: ")
    assert says in err
    assert len(err.splitlines()) == 1
    assert contents(folder) == before


def test_a_folder_that_is_not_there(tmp_path, capsys):
    code, _, err = ran(capsys, tmp_path / "gone")
    assert code == 2
    assert err == f"splitnet: error: {tmp_path / 'gone'}: no such folder; a run's folder is wanted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, err = ran(capsys, folder, "--out", tmp_path / "file" / "x")
    assert code == 2
    assert f"{tmp_path}/file/x: cannot write there" in err


GARBAGE = [None, True, -1, 1e400, "", "x", [], [None], {}, {"x": 1}]


def places(value, path=()):
    """The path to every node of a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def replaced(value, path, by):
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


@pytest.mark.parametrize(
    ("name", "every"), quick([("run", 1), ("compare", 1), ("compare", 3)], ("run", 1), ("compare", 3))
)
def test_whatever_stands_in_a_file_there_are_pages_or_one_line(folder, name, every):
    """Every place of a file, or each third, in turn holds something else."""
    found = json.loads((folder / f"{name}.json").read_text())
    outcomes = set()
    for number, path in enumerate(places(found)):
        if number % every:
            continue
        other = replaced(found, path, GARBAGE[number % len(GARBAGE)])
        (folder / f"{name}.json").write_text(json.dumps(other))
        try:
            outcomes.add(bool(write_pages(folder)))
        except UsageError as error:
            outcomes.add(str(error).startswith(f"{folder / name}.json: ") and "\n" not in str(error))
    assert outcomes == {True}


# Two runs


def test_two_runs_are_compared(folder, slower, capsys):
    before = contents(folder), contents(slower)
    code, out, err = ran(capsys, folder, slower)
    assert (code, err) == (0, "")
    first = next(line for line in out.splitlines() if line.strip().startswith("images_per_second"))
    assert first.split() == ["images_per_second", "32/s", "8/s", "-75.0", "%", "worse"]
    assert "The same in both:" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert (contents(folder), contents(slower)) == before


def test_a_comparison_as_files(folder, slower, tmp_path, capsys):
    ran(capsys, folder, slower, "--out", tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"difference.md", "difference.json"}
    found = json.loads((tmp_path / "out" / "difference.json").read_text())
    assert (found["schema"], found["before"], found["after"]) == (1, "first", "second")
    top = found["figures"][0]
    assert (top["metric"], top["before"], top["after"], top["relative"]) == ("images_per_second", 32, 8, -0.75)
    assert (top["noise"], top["verdict"]) == (False, "worse")
    assert (tmp_path / "out" / "difference.md").read_text().startswith("# first and second")


def test_verdicts_and_units_survive_80_columns(tmp_path, capsys):
    """Names, which are long, give way."""
    folders = []
    for name, size in (("a", 5), ("b", 30000)):
        compare = runs.with_replicas()
        compare["layouts"][0]["exchanged"] = [{"row": "a_row_with_a_long_name" * 2, "measured": size, "derived": size}]
        folders.append(runs.write(tmp_path / name, compare=compare))
    out = ran(capsys, *folders)[1]
    assert all(len(line) <= 80 for line in out.splitlines())
    [line] = [line for line in out.splitlines() if "+599,900.0 %" in line and "worse" in line][:1]
    assert "5 bytes" in line
    assert "…" not in out


# The gate


def test_a_gate_that_holds_fails(folder, slower, capsys):
    words = ("--fail-if", "images_per_second < 0.95", "--fail-if", "accuracy < 10%")
    code, out, err = ran(capsys, folder, slower, *words)
    assert (code, err) == (1, "")
    assert "Failed: images_per_second < 0.95: images_per_second is 0.25 times that of first (8/s and 32/s)" in out
    assert out.count("Failed:") == 1


def test_a_gate_that_does_not_hold_passes(folder, slower, capsys):
    assert ran(capsys, slower, folder, "--fail-if", "images_per_second < 0.95")[0] == 0
    assert ran(capsys, folder, "--fail-if", "images_per_second < 1.95")[0] == 0
    assert ran(capsys, folder, "--fail-if", "images_per_second < 2.05")[0] == 1


@pytest.mark.parametrize("text", ["nope < 1", "images_per_second ~ 1", "images_per_second < 3GiB", "accuracy < 1"])
def test_a_gate_that_is_wrong_writes_nothing(folder, capsys, text):
    before = contents(folder)
    code, out, err = ran(capsys, folder, "--fail-if", "images_per_second < 99", "--fail-if", text)
    assert (code, out) == (2, "")
    assert err.startswith(f'splitnet: error: --fail-if "{text}": ')
    assert len(err.splitlines()) == 1
    assert contents(folder) == before


def test_a_figure_that_is_missing_does_not_pass(tmp_path, capsys):
    folder = runs.write(tmp_path / "a", compare={}, trace=False)
    code, _, err = ran(capsys, folder, "--fail-if", "images_per_second < 1/s")
    assert code == 2
    assert "a has no images_per_second; it has training_images_per_second" in err


@pytest.mark.parametrize("words", [(), ("a", "b", "c"), ("a", "--fail", "x")])
def test_bad_usage(words, capsys):
    code, _, err = ran(capsys, *words)
    assert code == 2
    assert len(err.splitlines()) == 1


# For run.py


def test_write_pages_says_what_it_wrote(folder):
    assert {str(path.relative_to(folder)) for path in write_pages(folder)} == PAGES
    with pytest.raises(UsageError):
        write_pages(folder / "gone")


@pytest.mark.slow
def test_as_a_command(folder):
    command = [sys.executable, "-m", "splitnet.report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "report.html").stat().st_size > 10_000
    assert f"Page: {folder}/report.html" in done.stdout


# The run that is committed

ROOT = Path(__file__).parents[1]


def test_the_example_is_whole_small_and_of_this_schema(tmp_path):
    """What a reader of profiles/README.md is shown is what `report` makes of the files beside it."""
    [example] = (path.parent for path in ROOT.glob("profiles/*/run.json") if path.parent.name in README)
    found = summarise(example)
    assert (found.missing, found.run["status"]) == ([], "finished")
    files = [path for path in example.rglob("*") if path.is_file() and path.name != "report.html"]
    assert max(path.stat().st_size for path in files) < 2 * 2**20
    write_pages(example, tmp_path)
    for name in ("report.md", *(f"pictures/{name}" for name in NAMES)):
        assert (tmp_path / name).read_text() == (example / name).read_text()
    exchanged = found.timeline.exchanged(found.timeline.median_step())
    assert sum(exchanged.values()) == found.run["bytes_exchanged_a_step"] > 0


README = (ROOT / "profiles" / "README.md").read_text()
