"""Saves a tiny checkpoint every step, and each twice, until it is killed: `python save_forever.py RUN`."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from splitnet.training.checkpoint import Checkpoint, Checkpoints

ROOT = Path(__file__).parents[1]


def at(step: int, turn: int = 0) -> Checkpoint:
    """A checkpoint of which every part says the step."""
    weights = {"fc1.weight": torch.full((3, 5), float(step)), "fc1.bias": torch.full((3,), float(step))}
    memory = {f"{name}.momentum_buffer": -tensor for name, tensor in weights.items()}
    return Checkpoint(step, step // 7, step % 7, {"turn": turn}, [{"lr": step + 0.5}], weights, memory)


def check(found: Checkpoint) -> None:
    """Every part is of the same step."""
    expected = at(found.step)
    assert (found.epoch, found.batch, found.schedule) == (expected.epoch, expected.batch, expected.schedule)
    for state, wanted in ((found.weights, expected.weights), (found.optimizer, expected.optimizer)):
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def kill_while_saving(run: Path, number: int) -> int:
    """Kill a process that saves, at a random moment. What it said it saved must be there; returns the last step."""
    command = [sys.executable, "-u", __file__, str(run)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    saver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
    said = saver.stdout.readline()
    time.sleep(random.Random(number).uniform(0, 0.15))
    saver.kill()
    rest, _ = saver.communicate(timeout=60)
    told = [int(step) for step in re.findall(r"saved (\d+)\n", said + rest)]
    assert told
    found = Checkpoints(run).last()
    check(found)
    assert found.step >= told[-1]
    assert len(Checkpoints(run).steps()) <= 3  # one more than is kept, if it was killed before it removed the oldest
    return found.step


if __name__ == "__main__":
    kept = Checkpoints(Path(sys.argv[1]))
    step = kept.last().step if kept.steps() else 0
    while True:
        step += 1
        for turn in range(2):
            kept.save(at(step, turn))
            sys.stdout.write(f"saved {step}\n")
            sys.stdout.flush()
