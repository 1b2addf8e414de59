"""`torchrun … -m splitnet.run`: whole runs in several processes, on small networks."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from jobs import SMALL_RUN, Ended, environment, ranks_of, torchrun, words
from layouts import small
from PIL import Image
from safetensors.torch import save_file
from whole_runs import QUIET, folder_of, goes_on, losses, made, records

import splitnet
from splitnet.measure.records import read_compare, read_run
from splitnet.measure.timeline import Timeline, read
from splitnet.training.checkpoint import Checkpoints

pytestmark = pytest.mark.ranks

SMALL = ("--data", "fashion-mnist-small", "--batch-size", "15", "--timeout", "30")


def run(world, out, *options, **more):
    return torchrun(world, SMALL_RUN, *SMALL, "--out", out, *options, **more)


SLOW = {"timeout": 15, "seconds": 10}
"""Longer than a collective is waited for: 0.6 of the timeout."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Two processes, everything on; what the first measures alone takes long to begin."""
    out = tmp_path_factory.mktemp("ran")
    slowly = {"SLOW": str(SLOW["seconds"])}
    ended = run(2, out, "--towers", "2", "--steps", "7", "--timeout", str(SLOW["timeout"]), **slowly)
    assert ended.code == 0, ended.err
    return ended, folder_of(out)


def test_one_process_prints_and_writes(ran):
    ended, folder = ran
    assert ended.errors == []
    assert ended.out.count("Run folder:") == 1
    assert ended.out.startswith("fashion, 2 towers on 2 processes")
    assert folder.name.endswith("fashion-2x2")
    made = {path.name for path in folder.iterdir()}
    assert {"run.json", "steps.jsonl", "compare.json", "trace.json.gz", "report.md", "tensorboard"} <= made
    assert len(losses(folder)) == 7


def test_the_run_says_who_hosted_what(ran):
    devices = read_run(ran[1])["devices"]
    assert [(d["device"], d["tower"], d["replica"]) for d in devices] == [("rank 0", 0, 0), ("rank 1", 1, 0)]


def test_what_crossed_is_audited_and_compared(ran):
    ended, folder = ran
    assert "as the table derives, to the byte" in " ".join(ended.out.split())
    table = small("fashion").adapted(1, 10)
    layouts = {layout["layout"]: layout for layout in read_compare(folder)["layouts"]}
    assert list(layouts) == ["towers", "whole", "replicas", "dense"]
    assert sum(row["measured"] for row in layouts["towers"]["exchanged"]) == table.bytes_exchanged(15)
    # 15 images are 8 and 7, and each replica's gradients are summed once
    assert layouts["replicas"]["exchanged"] == [
        {"row": "gradients", "measured": 8 * table.parameters, "derived": 8 * table.parameters}
    ]
    for name in ("towers", "replicas"):
        assert max(layouts[name]["loss_differences"]) < 1e-4
        assert layouts[name]["ratio"]["n"] == 5


def test_all_ranks_are_in_one_trace(ran):
    _, folder = ran
    timeline = Timeline(read(folder / "trace.json.gz"))
    assert timeline.devices == ("rank 0", "rank 1")
    table = small("fashion").adapted(1, 10)
    crossed = dict.fromkeys(("conv3", "fc6", "fc7", "fc8"), 0)
    for (row, *_), size in timeline.exchanged(timeline.median_step()).items():
        if row:
            crossed[row] += size
    assert crossed == {row.name: sum(t.bytes for t in row.transfers(15)) for row in table.rows() if row.crosses}
    assert len(list((folder / "tensorboard").glob("*.pt.trace.json.gz"))) == 2


def test_two_processes_train_as_one_does(ran, tmp_path):
    folder = made(tmp_path, *SMALL, "--towers", "2", "--steps", "7", "--devices", "cpu,cpu")
    assert losses(folder) == losses(ran[1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """2x2 processes that end after ten steps, saved."""
    out = tmp_path_factory.mktemp("saved")
    ended = run(4, out, "--towers", "2", "--steps", "10", "--save-every", "5", "--no-compare", "--no-profile")
    assert ended.code == 0, ended.err
    assert "Between 2 replicas" in ended.out
    return folder_of(out)


def test_a_run_goes_on_in_any_other_layout(saved, tmp_path):
    """Ten steps of 2x2 processes, then two of one, then two of two processes; all as one process would."""
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    assert Checkpoints(folder).steps() == [5, 10]
    assert "at step 10" in goes_on(folder, "--steps", "12", "--devices", "cpu").out
    ended = torchrun(2, SMALL_RUN, "--resume", folder, "--steps", "14", *QUIET)
    assert ended.code == 0, ended.err
    straight = made(tmp_path / "straight", *SMALL, "--towers", "2", "--steps", "14", "--devices", "cpu")
    assert len(losses(folder)) == 14
    assert losses(folder) == pytest.approx(losses(straight), abs=1e-4)


def test_ranks_agree_that_a_finished_run_was_tested(saved, tmp_path):
    """Rank 0 alone has the records: if the others tested again, they would wait for it."""
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    tests = len(records(folder, "test"))
    ended = torchrun(2, SMALL_RUN, "--resume", folder, "--steps", "10", "--timeout", "20", *QUIET)
    assert ended.code == 0, ended.err
    assert len(records(folder, "test")) == tests


def started(world, out, *options, torchrun_options=()):
    """A job under way, in which at least two steps are recorded."""
    command = words(world, SMALL_RUN, *SMALL, "--out", out, *options, options=torchrun_options)
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 120
    while not any(len(losses(folder)) >= 2 for folder in out.glob("*") if (folder / "steps.jsonl").exists()):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job


def end_of(job):
    out, err = job.communicate(timeout=120)
    return Ended(job.returncode, out, err)


def test_sigterm_is_honoured_at_the_end_of_a_step_and_saved(tmp_path):
    job = started(2, tmp_path, "--towers", "2", "--steps", "100000", "--save-every", "100000", "--no-profile")
    job.send_signal(signal.SIGTERM)
    ended = end_of(job)
    assert ended.errors == []
    folder = folder_of(tmp_path)
    done = len(losses(folder))
    assert read_run(folder)["status"] == "interrupted"
    assert Checkpoints(folder).last().step == done
    goes_on(folder, "--steps", done + 1, "--devices", "cpu")
    assert len(losses(folder)) == done + 1


def test_killed_ranks_are_named_and_torchrun_goes_on_from_the_last_checkpoint(tmp_path):
    """One rank and, once the job has gone on, the one that writes. The weights are where it began, and no more."""
    table = small("fashion").adapted(1, 10)
    save_file(splitnet.build(table, devices=["cpu"], seed=9).whole_state_dict(), tmp_path / "w.safetensors")
    out = tmp_path / "runs"
    options = ("--towers", "2", "--steps", "60", "--save-every", "1", "--weights", tmp_path / "w.safetensors")
    job = started(2, out, *options, *QUIET, torchrun_options=("--max-restarts", "2"))
    folder = folder_of(out)
    victims = [kill(job, 1)]
    deadline = time.monotonic() + 120
    while (at := read_run(folder)["resumed_at"]) is None or len(losses(folder)) < at + 2:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victims.append(kill(job, 0))
    ended = end_of(job)
    assert ended.code == 0, ended.err
    assert len(ended.errors) == 2
    for rank, pid, line in zip((1, 0), victims, ended.errors, strict=True):
        assert line.startswith(f"rank {rank} ")
        assert f"pid {pid}" in line
        assert "was killed" in line
    assert [record["step"] for record in records(folder)] == list(range(60))
    assert read_run(folder)["resumed_at"] >= 2
    assert read_run(folder)["status"] == "finished"


def kill(job, rank):
    """Returns its process id."""
    victim = ranks_of(job)[rank]
    os.kill(victim, signal.SIGKILL)
    return victim


def test_a_loss_that_is_not_finite_stops_every_rank_at_the_same_step(tmp_path):
    ended = run(2, tmp_path, "--towers", "2", "--steps", "50", "--lr", "1e30", "--no-compare", "--no-profile")
    assert ended.code != 0
    [line] = ended.errors
    assert "the loss is" in line
    folder = folder_of(tmp_path)
    assert read_run(folder)["status"].startswith("failed: step ")
    assert f"step {len(losses(folder))}:" in line


@pytest.mark.parametrize(
    ("world", "options", "told"),
    [
        (2, ("--towers", "4"), "--towers 4: 2 processes are not a multiple of it"),
        (2, ("--towers", "2", "--resume", "nowhere"), "rank 0: nowhere: no such folder"),
    ],
)
def test_bad_usage_is_one_line_for_the_job_and_exit_2_of_each(tmp_path, world, options, told):
    out = () if "--resume" in options else ("--out", tmp_path / "out")
    ended = torchrun(world, SMALL_RUN, *SMALL, *out, *options)
    assert ended.code != 0
    [line] = ended.errors
    assert line.startswith(told)
    assert not (tmp_path / "out").exists()
    codes = [text.split()[2] for text in ended.err.splitlines() if text.strip().startswith("exitcode ")]
    assert codes == ["2"] * world


def test_a_checkpoint_of_another_network_is_refused(saved, tmp_path):
    before = sorted(path.name for path in saved.rglob("*"))
    ended = torchrun(2, SMALL_RUN, "--resume", saved, "--preset", "alexnet")
    [line] = ended.errors
    assert "weights of another network" in line
    assert "fc6.weight is (512, " in line
    assert sorted(path.name for path in saved.rglob("*")) == before


def test_the_doctor_tests_the_links_between_ranks():
    ended = torchrun(2, "-m", "splitnet.doctor", "--batch-size", "2", "--timeout", "30")
    assert ended.code == 0, ended.err
    assert "rank 0 -> rank 1" in ended.out
    assert "rank 1 -> rank 0" in ended.out
    assert "conv3 reduce_scatter" in ended.out
    assert ended.out.count("Sound: all ") == 1


def test_others_wait_for_what_the_first_measures_alone(ran):
    assert SLOW["seconds"] > 0.6 * SLOW["timeout"]
    assert ran[0].code == 0
    compared = {layout["layout"]: layout["ratio"]["n"] for layout in read_compare(ran[1])["layouts"]}
    assert compared == dict.fromkeys(("towers", "whole", "replicas", "dense"), 5)


def test_a_reader_that_leaves_ends_the_job_with_one_line(tmp_path):
    command = words(2, SMALL_RUN, *SMALL, "--out", tmp_path, "--towers", "2", "--steps", "2", "--no-profile")
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    job.stdout.close()
    _, err = job.communicate(timeout=120)
    [line] = Ended(job.returncode, "", err).errors
    assert line == "rank 0: its output was closed"


def test_broken_images_are_those_of_one_process(tmp_path):
    """A replica that lost images shifts the places of those behind, by which units are dropped."""
    chance = random.Random(3)
    for part, count in (("train", 14), ("val", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = bytes(chance.randrange(256) for _ in range(3 * 24 * 24))
                Image.frombytes("RGB", (24, 24), pixels).save(folder / f"{number}.png")
                if part == "train" and number % 5 == (label == "b"):
                    (folder / f"{number}.png").write_bytes(b"broken")
    options = ("--towers", "1", "--data", "imagefolder", "--data-dir", tmp_path / "images", "--batch-size", "9")
    options += ("--epochs", "2", "--optimizer", "sgd", "--no-compare", "--no-profile", "--timeout", "30")
    ended = torchrun(3, SMALL_RUN, *options, "--out", tmp_path / "job")
    assert ended.code == 0, ended.err
    job, one = folder_of(tmp_path / "job"), made(tmp_path / "one", *options, "--devices", "cpu")
    assert losses(job) == pytest.approx(losses(one), abs=1e-5)
    assert len(read_run(one)["skipped"]) == 6
    assert read_run(job)["skipped"] == read_run(one)["skipped"]


@pytest.mark.soak
def test_pages_that_take_longer_than_torchrun_waits_are_written(tmp_path):
    """When a job has failed, it kills after half a minute whoever is still there."""
    options = ("--towers", "2", "--steps", "50", "--lr", "1e30", "--no-compare", "--no-profile")
    ended = run(2, tmp_path, *options, SLOW_PAGES="40")
    assert len(ended.errors) == 1
    assert (folder_of(tmp_path) / "report.md").exists()
