"""The long ones: kills at random moments, and full-size claims. `make soak` runs them."""

import json
import random
import signal
import subprocess
import sys
import time

import damage
import pytest
from layouts import small
from save_forever import kill_while_saving
from whole_runs import KILLED, check_same, folder_of, goes_on, kill, made

from splitnet.measure.records import read_steps
from splitnet.network.presets import preset

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("number", range(100))
def test_whatever_kills_a_run_its_records_are_whole(number, tmp_path):
    chance = random.Random(number)
    words = "--preset lenet --towers 1 --data synthetic --batch-size 8 --epochs 100 --threads 1 --out"
    command = [sys.executable, "-m", "splitnet.run", *words.split(), str(tmp_path)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not any(tmp_path.iterdir()) and run.poll() is None:  # importing is PyTorch's time, not ours
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 8))
    how = chance.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    run.send_signal(how)
    _, errors = run.communicate(timeout=60)
    for folder in tmp_path.iterdir():
        if (folder / "run.json").exists():
            json.loads((folder / "run.json").read_text())
        steps = (
            [r["step"] for r in read_steps(folder / "steps.jsonl") if r["kind"] == "step"]
            if (folder / "steps.jsonl").exists()
            else []
        )
        assert steps == list(range(len(steps)))
    if how == signal.SIGINT:
        assert run.returncode == 130
        assert "Traceback" not in errors


def test_two_towers_need_little_more_than_half_the_memory_at_batch_128():
    from experiments.memory import peaks

    table = preset("alexnet", 2)
    [single] = peaks(table, ["fake:0"], 128).values()
    assert all(peak <= 0.55 * single for peak in peaks(table, ["fake:0", "fake:1"], 128).values())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("crosses", [None, "all", "none", "conv2,conv5,fc7"])
@pytest.mark.parametrize("name", ["fashion", "alexnet", "alexnet-paper", "alexnet-plain-pool", "alexnet-isolated"])
def test_towers_equal_the_whole_network_from_any_seed(name, crosses, seed):
    from splitnet.equality import TOLERANCES, attempt, compare, images
    from splitnet.parallel.placement import build

    table = small(name, 2, crosses)
    nets = [build(table, devices=devices, seed=seed).double() for devices in (["fake:0", "fake:1"], ["cpu"])]
    pixels, labels = images(table, 4, seed, next(nets[0].parameters()).dtype)
    towers, whole = (attempt(net, pixels, labels) for net in nets)
    tolerances = TOLERANCES[str(pixels.dtype).removeprefix("torch.")]
    assert max(row.excess(tolerances) for row in compare(table, towers, whole)) <= 1


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return damage.good_run(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("number", range(len(damage.CASES)))
def test_every_damaged_checkpoint_is_one_line(good, number):
    damage.refused(good, number)


def test_a_hundred_kills_while_saving_cost_nothing_that_was_saved(tmp_path):
    steps = [kill_while_saving(tmp_path, number) for number in range(100)]
    assert steps == sorted(set(steps))


def test_a_hundred_kills_of_a_run_that_saves_every_step(tmp_path):
    straight = made(tmp_path / "straight", *KILLED, "--steps", "4000", "--save-every", "1000")
    steps = [kill(tmp_path / "runs", straight, number) for number in range(100)]
    assert steps == sorted(steps)
    assert len(set(steps)) > 50
    folder = folder_of(tmp_path / "runs")
    goes_on(folder, "--save-every", "1000")
    check_same(folder, straight)
