"""The watch over ranks: whatever happens to one, all end in time and one line says which."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from hosts import two_hosts
from jobs import environment
from rank_jobs import START_UP, TORCHRUN, WORKER, Job, run_worker

from splitnet.parallel import guardian
from splitnet.parallel.beats import Beat, Process, Verdict, blame_who_hangs
from splitnet.parallel.ranks import job_store
from splitnet.parallel.watch import Watch

TIMEOUT = 12
LONGER = 30
"""For those of many ranks: on a machine that is busy with all of `make soak`, torchrun itself takes seconds to end."""
HERE = "step 7, exchange conv3"
# What is done to the rank, and what the line says after its name.
WORDS = {
    "kill": f"was killed, last seen in {HERE}",
    "stop": rf"was stopped, silent for \d+ s, last seen in {HERE}",
    "raise": f"failed with ValueError: boom, in {HERE}",
    "exit": f"ended with exit status 3, in {HERE}",
    "spin": f"hangs in {HERE}",
    "sleep": f"hangs in {HERE}",
    "hold": rf"does not respond, silent for \d+ s, last seen in {HERE}",
    "segfault": f"was killed, last seen in {HERE}",
    "vanish": f"was killed, last seen in {HERE}",
    "mistake": rf"failed with RuntimeError: .*size.*, in {HERE}",
    "leave": rf"has left, but rank \d waits for it in {HERE}; it was in {HERE}",
    "kill-joining": "was killed, last seen in joining",
    "stop-joining": r"was stopped, silent for \d+ s, last seen in joining",
    "raise-joining": "failed with ValueError: boom, in joining",
}
soak = pytest.mark.soak
QUICK = [("kill", 2, 0, TIMEOUT), ("stop", 2, 1, TIMEOUT), ("raise", 2, 0, TIMEOUT), ("spin", 2, 1, TIMEOUT)]
LONG = [(kind, 4, 3, LONGER) for kind in WORDS]
LONG += [(kind, 2, 1, LONGER) for kind in ("kill", "exit", "spin")]
LONG += [(kind, 2, 0, LONGER) for kind in ("stop", "sleep", "kill-joining")]


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("kind", "ranks", "victim", "timeout"),
    [*QUICK, *(pytest.param(*case, marks=soak) for case in LONG)],
)
def test_a_fault_ends_the_job_and_is_named(kind, ranks, victim, timeout, tmp_path):
    found, pid = run_worker(tmp_path, ranks, timeout, kind, victim)
    assert found.left == []
    assert found.seconds < timeout
    [line] = found.lines
    name = re.escape(f"splitnet: error: rank {victim} ({socket.gethostname()}, pid {pid}) ")
    assert re.fullmatch(name + WORDS[kind], line)
    assert found.status == 1
    before = found.errors.partition("splitnet:")[0]  # torchrun's own follows
    assert ("Traceback" in before) is kind.startswith(("raise", "mistake"))


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_end_with_torchrun(tmp_path):
    found, _ = run_worker(tmp_path, 2, TIMEOUT, "agent", 1)
    assert found.left == []
    assert found.seconds < TIMEOUT
    [line] = found.lines
    assert re.fullmatch(r"splitnet: error: torchrun \(pid \d+ on .+\) was killed: its ranks end with it", line)
    assert found.status == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.ranks
def test_without_a_fault_nothing_is_said(tmp_path):
    job = Job(2, [WORKER, TIMEOUT, 40], tmp_path)
    found = job.over(None, START_UP)
    assert (found.status, found.lines, found.left) == (0, [], [])
    assert sorted(found.out.splitlines()) == ["rank 0 left", "rank 1 left", "training"]


@pytest.mark.slow
@pytest.mark.ranks
@soak
@pytest.mark.parametrize("kind", ["kill-unborn", "stop-unborn"])
def test_a_rank_that_never_comes_is_named(kind, tmp_path):
    found, _ = run_worker(tmp_path, 2, LONGER, kind, 1)
    assert found.left == []
    [line] = found.lines
    assert re.fullmatch(r"splitnet: error: rank 1 has not started: nothing was heard of it for \d+ s", line)
    assert found.status == 1


@pytest.mark.slow
@pytest.mark.ranks
@soak
def test_ranks_that_wait_for_each_other(tmp_path):
    found, _ = run_worker(tmp_path, 4, LONGER, "deadlock", 2)
    assert found.left == []
    assert found.lines == [f"splitnet: error: all ranks wait for each other in {HERE}"]


@pytest.mark.slow
@pytest.mark.ranks
@soak
def test_a_slow_step_is_no_fault(tmp_path):
    job = Job(2, [WORKER, TIMEOUT, 40, "slow", 1, 7, tmp_path / "mark"], tmp_path)
    found = job.over(None, START_UP + 2 * TIMEOUT)
    assert (found.status, found.lines, found.left) == (0, [], [])


@pytest.mark.slow
@pytest.mark.ranks
@soak
def test_a_signal_to_torchrun_is_no_fault(tmp_path):
    job = Job(2, [WORKER, TIMEOUT, 10**6], tmp_path)
    try:
        while "training" not in job.out.read_text():
            assert job.torchrun.poll() is None
            time.sleep(0.05)
        job.torchrun.terminate()
        found = job.over(time.monotonic(), TIMEOUT)
    finally:
        job.kill()
    assert (found.lines, found.left) == ([], [])
    assert found.out.count("left") == 2


@pytest.mark.slow
@pytest.mark.ranks
@soak
def test_a_cut_cable_ends_both_hosts(tmp_path):
    with two_hosts() as (a, b):
        runs = []
        for number, host in enumerate((a, b)):
            where = f"--nnodes 2 --nproc-per-node 1 --node-rank {number} --master-addr {a.address} --master-port 29500"
            words = [*TORCHRUN, *where.split(), WORKER, TIMEOUT, 10**6]
            variables = environment(GLOO_SOCKET_IFNAME=host.interface)
            with (tmp_path / host.name).open("wb") as out:
                runs.append(host.popen(words, env=variables, stdout=out, stderr=subprocess.PIPE, text=True))
        deadline = time.monotonic() + START_UP
        while "training" not in (tmp_path / a.name).read_text():
            assert time.monotonic() < deadline
            assert all(run.poll() is None for run in runs)
            time.sleep(0.05)
        time.sleep(1)  # some beats
        a.cut()
        fault = time.monotonic()
        errors = [run.communicate(timeout=max(0.1, fault + TIMEOUT - time.monotonic()))[1] for run in runs]
    lines = [[line for line in text.splitlines() if line.startswith("splitnet:")] for text in errors]
    [[said_by_a], [said_by_b]] = lines
    lost = r"was killed, stopped or cut off, silent for \d+ s, last seen in step \d+, .+"
    assert re.fullmatch(rf"splitnet: error: rank 1 \(host-b, pid \d+\) {lost}", said_by_a)
    lost = r"has lost the host of rank 0 \(host-a\): it is down, or the network is cut; in step \d+, .+"
    assert re.fullmatch(rf"splitnet: error: rank 1 \(host-b, pid \d+\) {lost}", said_by_b)
    assert all(run.returncode for run in runs)


# In this process, with a store of its own.


@pytest.fixture
def connect():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return lambda: dist.TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=5))


def children():
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "guardian.py" in line]


def at_rest(pid):
    """What a guardian has open once it has read what it is told first: by then it has imported all that it needs."""
    deadline = time.monotonic() + 10
    with open(f"/proc/{pid}/fd/0", "rb", buffering=0) as pipe:  # noqa: PTH123 an open pipe, by its number
        while any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))) and time.monotonic() < deadline:
            time.sleep(0.01)
        return {fd.name: os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115 it names no file


def test_a_guardian_holds_nothing_of_its_parent_and_ends_with_the_watch(connect):
    found, opened = [], {}
    with Watch(connect, rank=0, world=1, timeout=60):  # what fails inside would end this process
        deadline = time.monotonic() + 10
        while not (found := children()) and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(OSError):
            opened = at_rest(found[0]) if found else {}
    assert len(found) == 1
    assert opened.pop("0").startswith("pipe:")
    assert set(opened.values()) == {"/dev/null"}
    assert children() == []


def test_a_beat_says_where_the_work_is(connect):
    with Watch(connect, rank=0, world=1, timeout=60) as watch:
        watch.at("step 7, exchange conv3")
        watch.at("step 7, exchange fc6")
    last = Beat.read(connect().get("beat/0"))
    assert (last.where, last.places, last.state) == ("step 7, exchange fc6", 2, "done")
    assert last.process == Process.this()


def test_what_is_written_is_read():
    verdict = Verdict("rank 1 is “gone”", 1, 2)
    assert Verdict.read(verdict.write().encode()) == verdict


def beat(state, places):
    return Beat(1, places, f"place {places}", state, Process("here", "", 9, ""))


@pytest.mark.parametrize(
    ("beats", "line", "blamed"),
    [
        # Rank 2 hangs, 3 waits for it, and the other replica is at the end of the step, where its own wait is younger.
        ("in 7, in 7, in 4, lost 4", "rank 2 (here, pid 9) hangs in place 4", 2),
        ("lost 7, lost 7, in 4, lost 4", "rank 2 (here, pid 9) hangs in place 4", 2),
        ("lost 4, in 5", "rank 1 (here, pid 9) hangs in place 5", 1),
        ("lost 4, lost 4", "all ranks wait for each other in place 4", None),
        (
            "lost 5, lost 4",
            "rank 1 (here, pid 9) waits for others that wait for it; it is furthest behind, in place 4",
            1,
        ),
    ],
)
def test_who_hangs_is_furthest_behind_of_those_who_do_not_wait(beats, line, blamed):
    beats = {r: beat(words.split()[0], int(words.split()[1])) for r, words in enumerate(beats.split(", "))}
    assert blame_who_hangs(beats) == Verdict(line, blamed)


def test_a_process_is_known_by_its_start_too():
    this = Process.this()
    assert this.state in "RS"
    assert this.awake
    other = Process(this.host, this.machine, this.pid, "1")
    assert (other.state, other.awake) == ("", False)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    seen = Process(this.host, this.machine, child.pid, stat[19])
    assert seen.awake
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert (seen.stopped, seen.awake) == (True, False)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie has ended
    assert seen.state == ""
    child.communicate()
    assert seen.state == ""


PARENT = f"""
import os, struct, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", {guardian.__file__!r}], stdin=subprocess.PIPE, bufsize=0)
child.stdin.write(struct.pack("qd", os.getpid(), float(sys.argv[1])))
print(child.pid, flush=True)
heir = os.fork() if len(sys.argv) > 2 else 1
if not heir:
    time.sleep(10)
    os._exit(0)
while True:
    child.stdin.write(b".")
    time.sleep(0.05)
"""


@contextmanager
def guarding(*words):
    """A process that beats, and the id of its guardian."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *words], stdout=subprocess.PIPE, text=True)
    try:
        yield parent, int(parent.stdout.readline())
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


@pytest.fixture
def guarded():
    with guarding("0.5") as both:
        yield both


def ends(pid, within=10.0):
    deadline = time.monotonic() + within
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not lives(pid)


def lives(pid):
    """Whether it has not ended; who inherits it may be slow to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_guardian_kills_a_parent_that_was_stopped_and_nobody_else(guarded):
    parent, pid = guarded
    time.sleep(1.0)
    assert parent.poll() is None
    parent.send_signal(signal.SIGSTOP)
    assert parent.wait(5) == -signal.SIGKILL
    assert ends(pid)


@pytest.mark.slow
def test_a_guardian_ignores_what_is_meant_for_its_parent_but_ends_with_it(guarded):
    parent, pid = guarded
    time.sleep(0.3)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, ignored)
    assert not ends(pid, 0.3)
    parent.kill()
    assert ends(pid)


@pytest.mark.slow
def test_a_guardian_ends_though_an_heir_of_its_parent_holds_the_pipe():
    with guarding("10", "with an heir") as (parent, pid):
        parent.kill()
        assert ends(pid)


@pytest.mark.slow
def test_a_guardian_that_was_stopped_with_its_parent_forgives(guarded):
    parent, pid = guarded
    time.sleep(0.3)
    os.kill(parent.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, parent.pid, os.WSTOPPED | os.WNOWAIT)
    time.sleep(0.1)  # the last beat has been read
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.0)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.1)
    os.kill(parent.pid, signal.SIGCONT)
    time.sleep(1.0)
    assert parent.poll() is None


def test_a_store_that_does_not_answer_is_named(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(ConnectionError, match=f"the job's store at 127.0.0.1:{port} does not answer"):
        job_store(0.1)


def test_attempts_do_not_read_each_others_keys(connect, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(connect().port))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    job_store().set("verdict", "lost")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not job_store().check(["verdict"])
