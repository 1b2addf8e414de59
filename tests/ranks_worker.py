"""A rank that does next to nothing but collectives, and on request dies or hangs: torchrun starts it.

ranks_worker.py TIMEOUT STEPS [KIND VICTIM STEP MARK]: the victim writes the moment of its fault into the file MARK.
"""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

stopping = threading.Event()
for _signal in (signal.SIGTERM, signal.SIGINT):  # before PyTorch's import: torchrun ends survivors with one
    signal.signal(_signal, lambda *_: stopping.set())

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from splitnet.parallel.ranks import job_store  # noqa: E402
from splitnet.parallel.watch import COLLECTIVE, Watch  # noqa: E402

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
EXCHANGE, STEP_END = "exchange conv3", "the end of the step"
SLOW = 1.5
"""Of the timeout: how long the slow step computes."""


def hurt(kind: str, mark: Path, timeout: float) -> None:
    time.sleep(1)  # so that a beat has said where
    mark.write_text(f"{time.monotonic()} {os.getpid()}\n")
    if kind in ("kill", "stop", "segfault"):
        names = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "segfault": signal.SIGSEGV}
        os.kill(os.getpid(), names[kind])
    elif kind == "raise":
        raise ValueError("boom\nand more")
    elif kind == "mistake":
        torch.zeros(2) @ torch.zeros(3)
    elif kind == "exit":
        sys.exit(3)
    elif kind == "vanish":
        os._exit(0)
    elif kind == "spin":
        while True:
            pass
    elif kind == "sleep":
        time.sleep(1000)
    elif kind == "hold":  # one call that keeps the interpreter's lock
        sum(range(10**12))
    elif kind == "agent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)
    elif kind == "slow":
        time.sleep(SLOW * timeout)
    elif kind == "deadlock":
        dist.recv(torch.zeros(1), src=(RANK + 1) % WORLD, tag=7)


def main(timeout: float, steps: int, kind: str = "", victim: int = -1, at: int = -1, mark: str = "") -> None:
    def fault(step: int, what: str) -> None:
        if kind.endswith(what) and (RANK, step) == (victim, at):
            hurt(kind.removesuffix(what), Path(mark), timeout)

    if kind.endswith("-unborn"):
        fault(at, "-unborn")
    with Watch(lambda: job_store(5), RANK, WORLD, timeout) as watch:
        watch.at("joining")
        fault(at, "-joining")
        limit = timedelta(seconds=timeout * (10 if kind == "slow" else COLLECTIVE))
        dist.init_process_group("gloo", store=job_store(), rank=RANK, world_size=WORLD, timeout=limit)
        for step in range(steps):
            watch.at(f"step {step}, {EXCHANGE}")
            if not kind.endswith(("-unborn", "-joining")):
                fault(step, "")
            if kind == "leave" and (RANK, step) == (victim, at):
                return
            parts = [torch.empty(8) for _ in range(WORLD)]
            dist.all_gather(parts, torch.full((8,), float(RANK)))
            watch.at(f"step {step}, {STEP_END}")
            flag = torch.tensor([float(stopping.is_set())])
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            if flag.item():
                break
            if RANK == 0 and step == 0:
                sys.stdout.write("training\n")
                sys.stdout.flush()
            time.sleep(0.01)
        watch.at("leaving")
        dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(f"rank {RANK} left\n")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(float(words[0]), int(words[1]), *words[2:3], *map(int, words[3:5]), *words[5:6])
