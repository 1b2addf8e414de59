"""What is read from a run folder is checked: whole records, or one line that names the file."""

import contextlib
import json
import os
from pathlib import Path

import pytest
import runs
from disks import small_disk

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

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "after all")
    assert contents(tmp_path) == {"run.json": b"before"}


# Going on in the same folder.

TEST = {"step": 0, "epoch": 0, "loss": 2.5, "accuracy": 0.5, "images": 16, "seconds": 0.5}


def steps_of(folder):
    return [(record["kind"], record["step"]) for record in read_steps(folder / "steps.jsonl")]


def test_a_run_goes_on_behind_what_it_wrote(folder):
    again = RunFolder.reopen(folder)
    again.append("step", STEP | {"step": 3})
    again.close()
    assert steps_of(folder) == [("step", number) for number in range(4)]


def test_a_run_goes_on_behind_half_a_line(folder):
    path = folder / "steps.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = RunFolder.reopen(folder)
    again.append("step", STEP | {"step": 2})
    again.close()
    assert steps_of(folder) == [("step", 0), ("step", 1), ("step", 2)]
    assert read_records(path)[1] is None


def test_what_is_no_run_cannot_be_gone_on_with(tmp_path):
    with pytest.raises(UsageError, match=r"gone: no such folder"):
        RunFolder.reopen(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"holds no run\.json"):
        RunFolder.reopen(tmp_path)
    RunFolder(tmp_path).write("run", RUN)
    (tmp_path / "steps.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"cannot write there"):
        RunFolder.reopen(tmp_path)


@pytest.mark.parametrize("step", range(5))
def test_what_came_after_a_checkpoint_is_cut(folder, step):
    made = RunFolder(folder)
    (folder / "steps.jsonl").unlink()
    for number in range(4):
        made.append("step", STEP | {"step": number})
        made.append("test", TEST | {"step": number + 1})
    made.close()
    again = RunFolder.reopen(folder)
    again.cut(step)
    wanted = [pair for n in range(min(step, 4)) for pair in (("step", n), ("test", n + 1))]
    assert steps_of(folder) == wanted
    again.append("step", STEP | {"step": step})
    again.close()
    assert steps_of(folder) == [*wanted, ("step", step)]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_test_after_as_many_updates_stays(folder):
    made = RunFolder(folder)
    made.append("test", TEST | {"step": 3})
    made.cut(3)
    assert steps_of(folder)[-1] == ("test", 3)
    made.cut(2)
    assert steps_of(folder) == [("step", 0), ("step", 1)]


def test_a_cut_keeps_lines_to_the_byte_and_drops_half_a_one(folder):
    path = folder / "steps.jsonl"
    first, second, third, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, b"{} \xff", second, b"[", third, b"broken", second[:9]]))
    RunFolder(folder).cut(2)
    assert path.read_bytes() == b"\n".join([first, b"{} \xff", second, b"[", b""])


def test_a_cut_without_records_or_of_newer_ones(folder):
    path = folder / "steps.jsonl"
    newer = json.dumps({"schema": SCHEMA + 1, "kind": "step", "step": 9}) + "\n"
    path.write_text(newer)
    with pytest.raises(NewerSchemaError, match=r"steps\.jsonl: schema 2"):
        RunFolder(folder).cut(1)
    assert path.read_text() == newer
    path.unlink()
    RunFolder(folder).cut(1)
    assert not path.exists()


# A full disk.


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as place:
        yield place


def filled(disk):
    """A file that takes all the room there is."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1000))
    return path


def test_a_full_disk_costs_no_record(disk):
    folder = RunFolder(disk)
    folder.write("run", RUN)
    for number in range(5):
        folder.append("step", STEP | {"step": number})
    filler = filled(disk)
    for number in range(5, 1000):
        folder.append("step", STEP | {"step": number})
        if folder.held == 40:
            break
    assert folder.held == 40
    number += 1
    assert number > 45  # the last page took some, and then half a line that was cut off again
    assert (disk / "steps.jsonl").read_bytes().endswith(b"}\n")
    assert steps_of(disk) == [("step", n) for n in range(number - 40)]
    with pytest.raises(OSError, match="No space"):
        folder.write("run", RUN | {"status": "x" * 10_000})
    assert read_run(disk) == {"schema": 1} | RUN
    assert sorted(path.name for path in disk.iterdir()) == ["filler", "run.json", "steps.jsonl"]
    with pytest.raises(OSError, match="No space"):
        folder.close()
    filler.unlink()
    folder.append("step", STEP | {"step": number})
    assert folder.held == 0
    folder.close()
    assert steps_of(disk) == [("step", n) for n in range(number + 1)]


def test_a_disk_that_is_full_from_the_start(disk):
    filler = filled(disk)
    folder = RunFolder(disk)
    folder.append("step", STEP)
    assert folder.held == 1
    filler.unlink()
    folder.close()
    assert steps_of(disk) == [("step", 0)]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_a_write_that_ends_early_costs_no_record(folder, monkeypatch, share):
    made, write, calls = RunFolder(folder), os.write, []

    def full(file, data):
        calls.append(len(data))
        if len(calls) % 2:
            return write(file, data[: int(len(data) * share)])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for number in range(3, 9):
        made.append("step", STEP | {"step": number})
        assert (folder / "steps.jsonl").read_bytes().endswith(b"}\n")
        assert steps_of(folder) == [("step", n) for n in range(number + 1 - made.held)]
    with pytest.raises(OSError, match="No space"):
        made.close()
    held = made.held
    assert held >= 1
    monkeypatch.setattr(os, "write", write)
    made.append("test", TEST | {"step": 9})
    made.close()
    assert steps_of(folder) == [*(("step", n) for n in range(9)), ("test", 9)]


def test_half_a_line_that_cannot_be_cut_off_is_cut_off_later(folder, monkeypatch):
    made, write, truncate = RunFolder(folder), os.write, os.ftruncate
    halves = iter([lambda file, data: write(file, data[:20]), None])

    def full(file, data):
        half = next(halves, None)
        if half is None:
            raise OSError(28, "No space left on device")
        return half(file, data)

    def refused(file, size):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "ftruncate", refused)
    made.append("step", STEP | {"step": 3})
    assert not (folder / "steps.jsonl").read_bytes().endswith(b"\n")
    monkeypatch.setattr(os, "write", write)
    made.append("step", STEP | {"step": 4})
    assert made.held == 2
    monkeypatch.setattr(os, "ftruncate", truncate)
    made.close()
    assert steps_of(folder) == [("step", n) for n in range(5)]
