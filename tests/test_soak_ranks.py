"""Killing or stopping a rank at random moments: the job ends each time. `make soak` runs them."""

import os
import random
import re
import signal
import time

import pytest
from rank_jobs import START_UP, WORKER, Job

pytestmark = [pytest.mark.soak, pytest.mark.ranks]
TIMEOUT = 30


@pytest.mark.parametrize("number", range(20))
def test_whatever_rank_is_lost_and_when_the_job_ends_and_names_it(number, tmp_path):
    chance = random.Random(number)
    ranks, kind = chance.choice([2, 2, 4]), [signal.SIGKILL, signal.SIGSTOP][number % 2]
    victim = chance.randrange(ranks)
    job = Job(ranks, [WORKER, TIMEOUT, 10**6], tmp_path)
    try:
        deadline = time.monotonic() + START_UP
        while len(job.ranks()) < ranks:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pid = job.ranks()[victim]
        time.sleep(chance.uniform(0.5, 8))  # from PyTorch's import to some hundred steps
        os.kill(pid, kind)
        found = job.over(time.monotonic(), TIMEOUT)
    finally:
        job.kill()
    assert found.left == []
    [line] = found.lines
    assert re.match(rf"splitnet: error: rank {victim} (\(.+, pid {pid}\) was (killed|stopped)|has not started)", line)
    assert found.status == 1
