"""What is read from a run folder is checked: whole records, or one line that names the file."""

import json
from pathlib import Path

import pytest
import runs

from splitnet.errors import UsageError
from splitnet.measure.records import (
    SCHEMA,
    NewerSchemaError,
    RunFolder,
    read_compare,
    read_records,
    read_run,
    read_steps,
    write_whole,
)

STEP = {"step": 0, "epoch": 0, "loss": 2.5, "accuracy": 0.5, "images": 16, "seconds": 0.5, "ends_epoch": False}
SPREAD = {"median": 2.0, "least": 1.0, "greatest": 3, "n": 5}
LAYOUT = {
    "layout": "towers",
    "devices": ["fake:0", "fake:1"],
    "images_per_second": SPREAD,
    "step_ms": SPREAD,
    "device_step_ms": None,
    "ratio": SPREAD,
    "memory": {"fake:0": {"peak": 4, "parameters": 1, "gradients": 1, "optimizer": 1, "activations": 1}},
    "exchanged": [{"row": "fc6", "measured": 8.0, "derived": 8}],
    "losses": [2.5, 2],
}
COMPARE = {"base": "whole", "rounds": 5, "layouts": [LAYOUT]}
RUN = {"status": "finished", "options": {"towers": 2}, "devices": [{"device": "fake:0"}]}


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path)
    made.write("run", RUN)
    made.write("compare", COMPARE)
    for number in range(3):
        made.append("step", STEP | {"step": number})
    made.close()
    return tmp_path


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_written_is_read(folder):
    before = contents(folder)
    assert read_run(folder) == {"schema": 1} | RUN
    assert read_compare(folder) == {"schema": 1} | COMPARE
    records, note = read_records(folder / "steps.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2]
    assert note is None
    assert contents(folder) == before


def test_a_line_that_was_cut_off_is_left_out_and_said(folder):
    path = folder / "steps.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    records, note = read_records(path)
    assert [record["step"] for record in records] == [0, 1]
    assert note == f"{path}: the last line is no whole record; 2 of 3 are, and are kept"
    assert read_steps(path) == records


def test_every_cut_leaves_whole_records(folder):
    path = folder / "steps.jsonl"
    whole = path.read_bytes()
    ends = [number for number, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        records, note = read_records(path)
        assert len(records) == sum(end <= cut for end in ends)
        between = cut > 0 and cut not in ends and cut - 1 not in ends
        assert (note is not None) == between


def test_a_broken_line_in_the_middle_is_named(folder):
    path = folder / "steps.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{}", lines[2]]) + "\n")
    records, note = read_records(path)
    assert [record["step"] for record in records] == [0, 2]
    assert note == f"{path}: line 2 is no whole record; 2 of 3 are, and are kept"


def test_a_missing_folder_and_one_of_something_else(tmp_path):
    with pytest.raises(UsageError, match=r"gone: no such folder"):
        read_run(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"holds no run\.json"):
        read_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: not a folder"):
        read_run(tmp_path / "file")


@pytest.mark.parametrize("name", ["run", "compare"])
def test_a_newer_schema_is_not_guessed_at(folder, name):
    changed(folder / f"{name}.json", schema=SCHEMA + 1)
    read = {"run": read_run, "compare": read_compare}[name]
    with pytest.raises(NewerSchemaError, match=rf"{name}\.json: schema 2, but this version of splitnet reads up to 1"):
        read(folder)


def test_a_newer_record_is_not_guessed_at(folder):
    with (folder / "steps.jsonl").open("a") as file:
        file.write(json.dumps({"schema": SCHEMA + 1}) + "\n")
    with pytest.raises(NewerSchemaError, match=r"steps\.jsonl: schema 2"):
        read_steps(folder / "steps.jsonl")


BROKEN = [
    (b"", "no whole JSON"),
    (b'{"schema": 1, "layouts": [', "no whole JSON"),
    (b"\xff\xfe", r"not UTF-8 text \(byte 0\)"),
    (b"[1]", "no schema number"),
    (b"{}", "no schema number"),
    (b'{"schema": "1"}', "no schema number"),
    (b'{"schema": true}', "no schema number"),
    (b"[" * 100_000, "no whole JSON"),
]


@pytest.mark.parametrize(("content", "says"), BROKEN)
@pytest.mark.parametrize("name", ["run", "compare"])
def test_a_broken_file_is_one_line_that_names_it(folder, name, content, says):
    (folder / f"{name}.json").write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name}\.json: .*{says}") as caught:
        {"run": read_run, "compare": read_compare}[name](folder)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, NewerSchemaError)


WRONG = [
    ({"images_per_second": None}, r"layouts\[0\]\.images_per_second: a table is wanted"),
    ({"images_per_second": SPREAD | {"median": "2"}}, r"layouts\[0\]\.images_per_second\.median: a finite number"),
    ({"images_per_second": SPREAD | {"median": float("nan")}}, r"images_per_second\.median: a finite number"),
    ({"step_ms": SPREAD | {"n": True}}, r"step_ms\.n: a whole number"),
    ({"device_step_ms": {}}, r"device_step_ms\.median is missing"),
    ({"memory": {"fake:0": {"peak": 1}}}, r"memory\.fake:0\.parameters is missing"),
    ({"exchanged": [{"row": 6, "measured": 8, "derived": 8}]}, r"exchanged\[0\]\.row: text is wanted"),
    ({"losses": {}}, r"losses: a list is wanted"),
]


@pytest.mark.parametrize(("fields", "says"), WRONG)
def test_a_figure_of_the_wrong_kind_is_named(folder, fields, says):
    changed(folder / "compare.json", layouts=[LAYOUT | fields])
    with pytest.raises(UsageError, match=rf"compare\.json: .*{says}"):
        read_compare(folder)


def test_a_layout_that_did_not_fit_needs_no_figures(folder):
    short = {"layout": "whole", "does_not_fit": "fc6 needs 30 MiB more on fake:0"}
    changed(folder / "compare.json", layouts=[LAYOUT, short])
    assert read_compare(folder)["layouts"][1] == short


def test_a_comparison_of_nothing(folder):
    changed(folder / "compare.json", layouts=[])
    with pytest.raises(UsageError, match="it compares no layouts"):
        read_compare(folder)


def test_a_file_is_written_in_one_piece(tmp_path):
    write_whole(tmp_path / "a.svg", "one")
    write_whole(tmp_path / "a.svg", "two")
    assert contents(tmp_path) == {"a.svg": b"two"}


def test_a_bad_byte_costs_its_line(tmp_path):
    folder = runs.write(tmp_path / "a")
    path = folder / "steps.jsonl"
    whole = len(read_records(path)[0])
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    records, said = read_records(path)
    assert len(records) == whole > 0
    assert said == f"{path}: the last line is no whole record; {whole} of {whole + 1} are, and are kept"


def test_what_stood_before_stays_until_all_is_written(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("before")

    def full(self, text, **_):
        with self.open("w") as file:
            file.write(text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "after all")
    assert path.read_text() == "before"
