"""Two hosts, which are network namespaces on this machine: one run trains over the cable between them."""

import subprocess
import sys
import time

import pytest
from hosts import two_hosts
from jobs import SMALL_RUN, environment
from whole_runs import goes_on, losses, made

from splitnet.measure.records import read_run
from splitnet.training.checkpoint import Checkpoints

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

OPTIONS = ("--towers", "2", "--data", "fashion-mnist-small", "--batch-size", "15", "--no-compare")


def start(hosts, out, *options):
    """One run of two ranks, one on each host, by torchrun's static rendezvous; as the README gives it."""
    runs = []
    for number, host in enumerate(hosts):
        where = f"--nnodes 2 --nproc-per-node 1 --node-rank {number} --master-addr {hosts[0].address}"
        torchrun = [sys.executable, "-m", "torch.distributed.run", *where.split(), "--master-port", "29500"]
        words = [*torchrun, SMALL_RUN, *OPTIONS, "--out", out / host.name, *options]
        variables = environment(GLOO_SOCKET_IFNAME=host.interface)
        runs.append(host.popen(words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return runs


def test_two_hosts_train_as_one_process_does(tmp_path):
    with two_hosts() as hosts:
        runs = start(hosts, tmp_path, "--steps", "6", "--save-every", "6")
        ended = [run.communicate(timeout=120) for run in runs]
        assert [run.returncode for run in runs] == [0, 0], ended
    [folder] = (tmp_path / "host-a").iterdir()
    assert not (tmp_path / "host-b").exists()  # rank 0 alone writes, on its host
    assert ended[1][0] == ""
    devices = read_run(folder)["devices"]
    assert [entry["name"] for entry in devices] == ["cpu of host-a", "cpu of host-b"]
    assert losses(folder) == losses(made(tmp_path / "alone", *OPTIONS, "--steps", "6", "--devices", "cpu,cpu"))


def test_a_cut_cable_ends_both_and_the_last_checkpoint_stands(tmp_path):
    with two_hosts() as hosts:
        options = ("--no-profile", "--save-every", "1", "--timeout", "15")
        runs = start(hosts, tmp_path, "--steps", "100000", *options)
        deadline = time.monotonic() + 100
        while not any(len(Checkpoints(folder).steps()) == 2 for folder in tmp_path.glob("host-a/*")):
            assert all(run.poll() is None for run in runs), [run.communicate() for run in runs]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        hosts[0].cut()
        cut = time.monotonic()
        errors = [run.communicate(timeout=60)[1] for run in runs]
        assert time.monotonic() - cut < 15 + 10  # the timeout, and torchrun's own end on a busy machine
    said = [[line for line in text.splitlines() if line.startswith("splitnet: error: ")] for text in errors]
    [[by_a], [by_b]] = said
    assert "rank 1 (host-b, pid" in by_a
    assert "rank 1 (host-b, pid" in by_b
    assert "has lost the host of rank 0 (host-a)" in by_b
    [folder] = (tmp_path / "host-a").iterdir()
    last = Checkpoints(folder).last().step
    goes_on(folder, "--devices", "cpu", "--steps", last + 1)
    assert len(losses(folder)) == last + 1
