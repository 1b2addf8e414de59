"""Checkpoints: going on is as never having stopped, whatever stops the program, and only whole ones are read."""

import contextlib
import errno
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial

import damage
import pytest
import torch
from disks import small_disk
from layouts import relative, small
from quick import quick
from save_forever import at, check, kill_while_saving

from splitnet.errors import UsageError
from splitnet.network import weights
from splitnet.parallel import fake
from splitnet.parallel.audit import audit
from splitnet.parallel.placement import build, place
from splitnet.training import checkpoint_files
from splitnet.training.checkpoint import Checkpoint, Checkpoints, check_fits
from splitnet.training.data import load
from splitnet.training.loop import Position, train
from splitnet.training.optimizer import make_optimizer
from splitnet.training.optimizer_state import join_shares, load_optimizer, schedule_of, shares_of

FASHION = small("fashion")
PAIR = ["fake:0", "fake:1"]
LAYOUTS = [["cpu"], ["cpu", "cpu"], PAIR]
SETTINGS = {"preset": "fashion", "towers": 2, "lr": None, "names": ["a", "ä"], "deep": {"x": [1, 2.5, True]}}

START = Position()


# Going on.


def started(devices, optimizer, dtype=torch.float32, table=FASHION, lr=0.002):
    net = build(table, devices=devices).to(dtype)
    return net, make_optimizer(net.parameters(), optimizer, lr)


def trained(net, optimizer, steps, start=START):
    """Train up to so many steps, over an epoch of four. Returns losses, and where it stands."""
    table = net.architecture
    images = load("synthetic", size=table.size, seed=0, train=16, channels=table.channels, classes=table.classes).train
    found = list(train(net, images, optimizer, batch_size=4, seed=0, steps=steps, start=start))
    return [step.loss for step in found], found[-1].after if found else start


def memory(net, optimizer):
    return join_shares(net.architecture, shares_of(net, optimizer))


def checkpoint(net, optimizer, where=START):
    return Checkpoint(
        where.step,
        where.epoch,
        where.batch,
        SETTINGS,
        schedule_of(optimizer),
        net.whole_state_dict(),
        memory(net, optimizer),
    )


def resumed(run, devices, optimizer, dtype=torch.float32):
    """A network and an optimizer built anew, and loaded from the last checkpoint."""
    net, learner = started(devices, optimizer, dtype, lr=None)
    found = Checkpoints(run).last()
    net.load_whole_state_dict(found.weights)
    load_optimizer(net, learner, found)
    return net, learner, Position(found.step, found.epoch, found.batch)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("devices", LAYOUTS, ids=",".join)
@pytest.mark.parametrize("optimizer", quick(["adam", "sgd"], "adam"))
def test_going_on_is_as_never_having_stopped(devices, optimizer, tmp_path):
    net, learner = started(devices, optimizer)
    losses, _ = trained(net, learner, 6)
    first, half = started(devices, optimizer)
    before, where = trained(first, half, 3)
    Checkpoints(tmp_path).save(checkpoint(first, half, where))
    second, other, start = resumed(tmp_path, devices, optimizer)
    assert start == Position(3, 0, 3)
    same(memory(second, other), memory(first, half))
    after, _ = trained(second, other, 6, start)
    assert before + after == losses
    same(second.whole_state_dict(), net.whole_state_dict())
    same(memory(second, other), memory(net, learner))


@pytest.mark.parametrize("optimizer", quick(["adam", "sgd"], "sgd"))
def test_going_on_in_another_layout(optimizer, tmp_path):
    def close(a, b):
        assert a.keys() == b.keys()
        assert max(relative(a[name], b[name]) for name in a) <= 1e-12

    net, learner = started(["cpu"], optimizer, torch.float64)
    losses, _ = trained(net, learner, 6)
    for saved_by, read_by in ((PAIR, ["cpu"]), (["cpu"], PAIR)):
        run = tmp_path / f"{len(saved_by)}"
        run.mkdir()
        first, half = started(saved_by, optimizer, torch.float64)
        _, where = trained(first, half, 3)
        Checkpoints(run).save(checkpoint(first, half, where))
        second, other, start = resumed(run, read_by, optimizer, torch.float64)
        same(memory(second, other), memory(first, half))  # chunking and joining change nothing
        after, _ = trained(second, other, 6, start)
        assert after == pytest.approx(losses[3:], rel=1e-12)
        close(second.whole_state_dict(), net.whole_state_dict())
        close(memory(second, other), memory(net, learner))


@pytest.mark.parametrize("devices", [["cpu"], PAIR], ids=",".join)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_state_lies_where_the_update_wants_it(optimizer, devices, tmp_path):
    first, half = started(devices, optimizer)
    _, where = trained(first, half, 1)
    Checkpoints(tmp_path).save(checkpoint(first, half, where))
    net, learner, _ = resumed(tmp_path, devices, optimizer)
    for parameter in net.parameters():
        for held in learner.state[parameter].values():
            assert held.device == parameter.device
            assert not held.requires_grad
            assert held.stride() == (parameter.stride() if held.dim() else ())


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_state_goes_to_a_gpu_and_back(optimizer, tmp_path):
    first, half = started(["cuda:0", "cuda:0"], optimizer)
    _, where = trained(first, half, 3)
    Checkpoints(tmp_path).save(checkpoint(first, half, where))
    for devices in (["cuda:0", "cuda:0"], ["cuda:0"], ["cpu"]):
        net, learner, start = resumed(tmp_path, devices, optimizer)
        same(memory(net, learner), memory(first, half))
        for parameter in net.parameters():
            for held in learner.state[parameter].values():
                assert held.device == parameter.device
                assert held.stride() == (parameter.stride() if held.dim() else ())
        losses, _ = trained(net, learner, 6, start)
        assert len(losses) == 3


@pytest.mark.parametrize("devices", LAYOUTS, ids=",".join)
def test_state_is_named_and_shaped_as_the_weights(devices):
    net, learner = started(devices, "adam")
    trained(net, learner, 1)
    found, shapes = memory(net, learner), weights.shapes(FASHION)
    assert list(found) == [f"{name}.{kind}" for name in shapes for kind in ("step", "exp_avg", "exp_avg_sq")]
    for name, tensor in found.items():
        assert tuple(tensor.shape) == (() if name.endswith(".step") else shapes[name.rpartition(".")[0]])
        assert tensor.device.type == "cpu"
        assert tensor.is_contiguous()
    kept = {name: tensor.clone() for name, tensor in found.items()}
    trained(net, learner, 3, Position(1, 0, 1))
    same(found, kept)  # a copy, not the optimizer's own memory


def test_the_schedule_is_given_back(tmp_path):
    net, learner = started(["cpu"], "adam", lr=0.25)
    learner.param_groups[0]["betas"] = (0.5, 0.75)
    trained(net, learner, 1)
    Checkpoints(tmp_path).save(checkpoint(net, learner, Position(1, 0, 1)))
    _, other, _ = resumed(tmp_path, ["cpu"], "adam")
    [group] = other.param_groups
    assert (group["lr"], group["betas"], group["fused"]) == (0.25, (0.5, 0.75), True)
    assert len(group["params"]) == len(list(net.parameters()))
    assert Checkpoints(tmp_path).last().settings == SETTINGS


def test_a_checkpoint_before_the_first_step(tmp_path):
    net, learner = started(["cpu"], "adam")
    Checkpoints(tmp_path).save(checkpoint(net, learner))
    second, other, start = resumed(tmp_path, ["cpu", "cpu"], "adam")
    assert (start, other.state) == (Position(), {})
    assert trained(second, other, 2)[0] == pytest.approx(trained(net, learner, 2)[0], rel=1e-4)


def test_the_audit_knows_the_copies_of_a_checkpoint():
    table, place_of = FASHION, place(FASHION, PAIR)
    net, learner = started(PAIR, "adam")
    trained(net, learner, 1)
    found = checkpoint(net, learner, Position(1, 0, 1))
    fake.clear_copies()
    net.ledger.clear()
    load_optimizer(net, learner, found)
    memory(net, learner)
    held = audit(table, place_of, net.ledger.transfers(), 0, 0)
    assert held.copies == 0
    assert held.host_copies == 2 * 3 * sum(len(list(tower.parameters())) for tower in net.hosted)


# Another network, another optimizer.


def refusal(call, *args):
    with pytest.raises(UsageError) as caught:
        call(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture(scope="module")
def saved():
    """After one step of Adam; nobody changes it."""
    net, learner = started(["cpu"], "adam")
    _, where = trained(net, learner, 1)
    return checkpoint(net, learner, where)


def test_what_fits_is_silent(saved):
    check_fits(saved, FASHION)


def test_another_network_is_named_with_its_first_shape(saved):
    line = refusal(check_fits, saved, small("alexnet"))
    assert line.startswith("weights of another network, not of alexnet with --towers 2: conv1.weight is (")
    line = refusal(check_fits, saved, small("fashion", 1))
    assert re.search(r"--towers 1: conv\d\.weight is \(", line)
    line = refusal(check_fits, replace(saved, weights={}), FASHION)
    assert line.endswith("conv1.weight is missing")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda o: o | {"conv1.weight.exp_avg": torch.zeros(3)}, r"conv1\.weight\.exp_avg is \(3,\), not \("),
        (lambda o: o | {"conv1.bias.exp_avg": torch.zeros(())}, r"conv1\.bias\.exp_avg is \(\), not \("),
        (lambda o: o | {"conv9.bias.exp_avg": torch.zeros(3)}, r"'conv9\.bias\.exp_avg' is no state of a weight"),
        (lambda o: {n: t for n, t in o.items() if n != "fc8.bias.step"}, r"fc8\.bias\.step is missing"),
        (lambda o: o | {"fc8.bias.step": torch.zeros(1)}, r"fc8\.bias\.step is \(1,\), not \(\)"),
    ],
)
def test_state_that_does_not_fit_its_weights(saved, change, says):
    net, learner = started(["cpu", "cpu"], "adam")
    broken = replace(saved, optimizer=change(saved.optimizer))
    assert re.search(says, refusal(check_fits, broken, FASHION))
    refusal(load_optimizer, net, learner, broken)
    assert not learner.state


def test_the_state_of_another_optimizer(saved):
    net, learner = started(["cpu"], "sgd")
    line = refusal(load_optimizer, net, learner, saved)
    assert line == "the state of another optimizer: exp_avg, exp_avg_sq, step after 1 steps; SGD keeps momentum_buffer"
    assert not learner.state
    trained(net, learner, 1)
    other, adam = started(["cpu"], "adam")
    refusal(load_optimizer, other, adam, checkpoint(net, learner, Position(1, 0, 1)))
    refusal(load_optimizer, other, adam, replace(saved, optimizer={}))
    refusal(load_optimizer, other, adam, replace(saved, step=0))
    unstarted = replace(saved, step=0, optimizer={})
    assert "has no momentum" in refusal(load_optimizer, *started(["cpu"], "sgd"), unstarted)


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": "0.1"},
        {"lr": None},
        {"lr": True},
        {"lr": -1.0},
        {"lr": [0.1, 0.1]},
        {"betas": 0.9},
        {"betas": [0.9]},
        {"betas": [0.9, 0.9, 0.9]},
        {"betas": [0.9, "0.9"]},
        {"amsgrad": True},
        {"momentum": 0.9},
    ],
)
def test_a_schedule_that_does_not_fit(saved, fields):
    net, learner = started(["cpu"], "adam")
    broken = replace(saved, schedule=[saved.schedule[0] | fields])
    before = schedule_of(learner)
    line = refusal(load_optimizer, net, learner, broken)
    assert line.startswith("the schedule of another optimizer: ")
    assert next(iter(fields)) in line
    assert (schedule_of(learner), len(learner.state)) == (before, 0)


def test_a_schedule_of_other_groups(saved):
    net, learner = started(["cpu"], "adam")
    refusal(load_optimizer, net, learner, replace(saved, schedule=[]))
    del (short := dict(saved.schedule[0]))["lr"]
    assert "has no lr" in refusal(load_optimizer, net, learner, replace(saved, schedule=[short]))


def test_another_dtype_is_refused(saved):
    net, learner = started(["cpu"], "adam", torch.float64)
    line = refusal(load_optimizer, net, learner, saved)
    assert line.endswith("conv1.weight is torch.float32, the network's are torch.float64")


# Files.


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_is_saved_is_read(tmp_path):
    kept = Checkpoints(tmp_path)
    path = kept.save(at(10))
    assert path == tmp_path / "checkpoints" / "step-0000000010"
    assert sorted(file.name for file in path.iterdir()) == sorted(damage.FILES)
    check(kept.last())
    assert (kept.last().step, kept.steps()) == (10, [10])
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK\n")) == (0, 3)


def test_the_last_two_are_kept(tmp_path):
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 3, 10_000_000_000):
        kept.save(at(step))
    assert kept.steps() == [3, 10_000_000_000]
    assert names(tmp_path) == ["step-0000000003", "step-10000000000"]
    assert kept.last().step == 10_000_000_000


def test_whoever_goes_back_gives_up_what_came_later(tmp_path):
    kept = Checkpoints(tmp_path, keep=3)
    for step in (5, 10, 15):
        kept.save(at(step))
    kept.save(at(7))
    assert kept.steps() == [5, 7]
    check(kept.last())


def test_saving_over_a_step(tmp_path):
    kept = Checkpoints(tmp_path)
    for turn in range(3):
        kept.save(at(5, turn))
        assert kept.last().settings == {"turn": turn}
        assert names(tmp_path) == ["step-0000000005"]


def test_leftovers_of_kills_are_cleared_and_nothing_else(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(at(1))
    folder = tmp_path / "checkpoints"
    for name in (".step-0000000002.aside", ".step-0000000001.replaced", ".step-0000000000.removed"):
        (folder / name).mkdir()
        (folder / name / "weights.safetensors").write_text("half")
    for name in ("notes.txt", ".hidden", "step-3", "step-0000000003.old", ".step-0000000004", "step-00000000009"):
        (folder / name).write_text("somebody's")
    assert kept.last().step == 1
    kept.save(at(2))
    others = [".hidden", ".step-0000000004", "notes.txt", "step-0000000003.old", "step-00000000009", "step-3"]
    assert names(tmp_path) == sorted(["step-0000000001", "step-0000000002", *others])


def test_no_checkpoints(tmp_path):
    assert Checkpoints(tmp_path / "gone").steps() == []
    assert refusal(Checkpoints(tmp_path / "gone").last) == f"{tmp_path}/gone: no such folder"
    line = f"{tmp_path}: no run's folder: it holds neither checkpoints nor run.json"
    assert refusal(Checkpoints(tmp_path).last) == line
    line = f"{tmp_path}/checkpoints: no checkpoint there (a run's --save-every keeps them)"
    (tmp_path / "run.json").touch()
    assert refusal(Checkpoints(tmp_path).last) == line
    (tmp_path / "run.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    assert refusal(Checkpoints(tmp_path).last) == line
    (tmp_path / "file").touch()
    assert refusal(Checkpoints(tmp_path / "file").last) == f"{tmp_path}/file: not a folder"
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").touch()
    assert refusal(Checkpoints(tmp_path).last) == f"{tmp_path}/checkpoints: cannot be read (Not a directory)"
    assert Checkpoints(tmp_path).steps() == []


def test_without_safetensors(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    kept.save(at(1))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install safetensors" in refusal(kept.save, at(2))
    assert "pip install safetensors" in refusal(kept.last)
    assert names(tmp_path) == ["step-0000000001"]


# What cannot be written leaves what was there.


@pytest.mark.parametrize("settings", [{"a": float("nan")}, {"a": 2**70}, {"a": "\ud800"}])
def test_what_could_not_be_read_is_not_written(settings, tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(at(1))
    with pytest.raises(ValueError, match=r"."):
        kept.save(replace(at(2), settings=settings))
    assert names(tmp_path) == ["step-0000000001"]


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as place:
        yield place


def test_a_full_disk_leaves_the_older_ones(disk):
    kept = Checkpoints(disk)
    kept.save(at(1))
    kept.save(at(2))
    large = {"fc1.weight": torch.ones(300, 1000), "fc1.bias": torch.ones(300)}
    for step in (2, 3):
        with pytest.raises(OSError, match="No space") as caught:
            kept.save(replace(at(step), weights=large, optimizer={}))
        assert caught.value.errno == errno.ENOSPC
        assert names(disk) == ["step-0000000001", "step-0000000002"]
        check(kept.last())
    kept.save(at(3))
    assert kept.steps() == [2, 3]


@pytest.mark.parametrize("step", [2, 3])
def test_a_disk_that_fails_at_any_write_leaves_the_older_ones(step, tmp_path, monkeypatch):
    """Without root: the n-th fsync or rename fails."""
    kept = Checkpoints(tmp_path)
    kept.save(at(1))
    kept.save(at(2))
    calls, limit = [], 0

    def failing(call):
        def instead(*args):
            calls.append(call)
            if len(calls) == limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*args)

        return instead

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "rename", failing(os.rename))
    failed = []
    for limit in range(1, 7 + (step == 2)):  # four files and the folder, then the renames
        calls.clear()
        with pytest.raises(OSError, match="No space"):
            kept.save(at(step, turn=1))
        failed.append(limit)
        assert names(tmp_path) == ["step-0000000001", "step-0000000002"]
        assert kept.last().settings == {"turn": 0}
        check(kept.last())
    limit = 0
    kept.save(at(step, turn=1))
    assert kept.last().settings == {"turn": 1}


# Damage.


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return damage.good_run(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("number", range(20))
def test_a_damaged_checkpoint_is_one_line(good, number):
    damage.refused(good, number)


@pytest.mark.slow
def test_a_forged_checkpoint_is_one_line(good):
    """Where the sums are right, or say nothing: each of these is refused by another line of the code."""
    for number, (what, _) in enumerate(damage.CASES):
        if "right sums" in what or "link" in what or "pipe" in what:
            damage.refused(good, number)


def test_the_damages_are_many_and_differ(good):
    assert len({what for what, _ in damage.CASES}) == len(damage.CASES) >= 200
    damage.read(good)


@pytest.mark.parametrize("name", damage.FILES)
def test_the_line_names_the_file_and_the_way_out(name, tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(at(5))
    folder = kept.save(at(10))
    (folder / name).unlink()
    assert refusal(kept.last) == (
        f"{folder / name}: cannot be read (No such file or directory); remove {folder} to resume from step-0000000005"
    )
    folder.rename(tmp_path / "taken away")
    check(kept.last())
    assert kept.last().step == 5


def test_the_way_out_is_one_that_can_be_gone(tmp_path):
    kept = Checkpoints(tmp_path, keep=3)
    first, second, third = (kept.save(at(step)) for step in (5, 10, 15))
    damage.truncated(second, "SHA256SUMS", 0.5)
    damage.truncated(third, "SHA256SUMS", 0.5)
    assert refusal(kept.last).endswith(f"remove {third} to resume from {first.name}")


def test_a_line_without_a_way_out(tmp_path):
    kept = Checkpoints(tmp_path)
    damage.truncated(kept.save(at(5)), "state.json", 0.5)
    line = refusal(kept.last)
    assert line == f"{tmp_path}/checkpoints/step-0000000005/state.json: its SHA-256 is not the one in SHA256SUMS"


def test_a_later_version_is_not_taken_for_damage(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(at(4))
    damage.state(kept.save(at(5)), schema=2)
    assert refusal(kept.last).endswith("state.json: schema 2, but this version of splitnet reads up to 1")


def test_every_bit_of_the_sums_and_the_state_counts(tmp_path):
    kept = Checkpoints(tmp_path)
    folder = kept.save(at(5))
    for name in ("SHA256SUMS", "state.json"):
        data = (folder / name).read_bytes()
        for byte in range(len(data)):
            changed = bytearray(data)
            changed[byte] ^= 1 << byte % 8
            (folder / name).write_bytes(changed)
            refusal(kept.last)
        (folder / name).write_bytes(data)
    check(kept.last())


# Kills.


def killed_at(number, action):
    """Do it in another process, which ends without a word before its n-th operation on files. Whether it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons: of forks beside threads
        child = os.fork()
    if child == 0:
        count = 0

        def hook(event, _):
            nonlocal count
            if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
                count += 1
                if count == number:
                    os._exit(9)

        sys.addaudithook(hook)
        with contextlib.suppress(BaseException):
            action()
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize(
    ("before", "step", "keep", "after"),
    [
        pytest.param([3, 6], 9, 2, [6, 9], marks=pytest.mark.slow),
        pytest.param([3, 6], 6, 2, [3, 6], marks=pytest.mark.slow),
        pytest.param([6], 6, 1, [6], marks=pytest.mark.slow),
        pytest.param([3, 6, 9], 5, 3, [3, 5], marks=pytest.mark.slow),
        ([], 1, 2, [1]),
    ],
)
def test_whatever_moment_a_save_is_killed_at_a_whole_one_stands(before, step, keep, after, tmp_path):
    number, killed = 0, True
    while killed:
        number += 1
        run = tmp_path / str(number)
        run.mkdir()
        kept = Checkpoints(run, keep)
        for other in before:
            kept.save(at(other))
        killed = killed_at(number, partial(kept.save, at(step, turn=1)))
        if before or not killed:
            found = kept.last()
            check(found)
            assert found.step in {step, *before[-1:]} | {other for other in before if other > step}
            assert kept.steps()[-1] == found.step
            for path in (run / "checkpoints").glob("step-*"):  # half a one never has the name of a whole one
                check(checkpoint_files.read(path, int(path.name[5:])))
            assert killed or found.settings == {"turn": 1}
        kept.save(at(step, turn=2))
        assert (kept.steps(), kept.last().settings) == (after, {"turn": 2})
        assert names(run) == [f"step-{step:010d}" for step in after]
    assert number > 10


@pytest.mark.slow
def test_a_kill_while_saving_costs_nothing_that_was_saved(tmp_path):
    steps = [kill_while_saving(tmp_path, number) for number in range(5)]
    assert steps == sorted(set(steps))
