"""Reading ahead: the same batches, told the same, whoever reads them and when; and no thread that outlives its use."""

import gc
import itertools
import json
import subprocess
import sys
import threading
import time
import weakref
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import pytest
import torch
from layouts import small
from PIL import Image
from test_training_sharing import World

from splitnet.errors import UsageError
from splitnet.measure.records import read_records
from splitnet.measure.summary import waiting
from splitnet.parallel import fake
from splitnet.parallel.placement import build
from splitnet.testing import fake_devices  # noqa: F401
from splitnet.training import loop
from splitnet.training.data import load, order
from splitnet.training.loop import Position, evaluate, train
from splitnet.training.optimizer import make_optimizer
from splitnet.training.prefetch import Ahead, Pool
from splitnet.training.sharing import Interrupted, Stop, own_slices, shared_batches
from splitnet.training.splits import AHEAD, Batch, Reader, batches

LENET = small("lenet", 1).adapted(channels=3, classes=2)
WORKERS = [0, 1, 3]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert [thread for thread in threading.enumerate() if thread not in before and "reader" in thread.name] == []


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("splitnet-reader")]


@pytest.fixture
def images(tmp_path):
    """11 training images of two classes, of which those at places 2 and 7 are broken, and 6 to test on."""
    for folder, count in (("train", 11), ("val", 6)):
        for place in range(count):
            path = tmp_path / folder / "ab"[place > count // 2] / f"{place:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pattern = torch.arange(30 * 30 * 3).mul(place * 7 + 1).remainder(251).to(torch.uint8)
            Image.fromarray(pattern.view(30, 30, 3).numpy()).save(path)
            if folder == "train" and place in {2, 7}:
                path.write_bytes(b"\x89PNG no more")
    return tmp_path


START = Position()


def trained(data, devices=("cpu",), start=START, stop=None, **limits):
    net = build(LENET, devices=list(devices))
    learner = make_optimizer(net.parameters(), "sgd", 0.01)
    records = train(net, data.train, learner, **{"batch_size": 3, "seed": 5} | limits, start=start, stop=stop)
    return net, records


def told(records):
    return [(r.step, r.epoch, r.loss, r.accuracy, r.images, r.batch, r.ends_epoch) for r in records]


class Later:
    """A batch of which the reading is begun, and done when the test says so."""

    def __init__(self, split, indices):
        self.split, self.indices, self.dropped = split, indices, False
        self.done = split.done.setdefault(indices[0].item(), Event())

    @property
    def ready(self):
        return self.done.is_set()

    def result(self):
        self.split.asked(self)
        assert self.done.wait(30)
        return self.split.batch(self.indices)

    def drop(self):
        self.dropped = True


class Slow:
    """A split whose batches, by their first place, are there when `done` is set; `broken` are missing from them."""

    def __init__(self, count=12, at_once=True, broken=(), wrong=None):
        self.images = torch.arange(count * 3 * 32 * 32).remainder(249).to(torch.uint8).view(count, 3, 32, 32)
        self.done, self.at_once, self.broken, self.wrong = {}, at_once, set(broken), wrong
        self.begun, self.open = [], 0

    def __len__(self):
        return len(self.images)

    def reading(self):
        return self

    def __enter__(self):
        self.open += 1

    def __exit__(self, *_):
        self.open -= 1

    def begin(self, indices):
        assert self.open
        self.begun.append(Later(self, indices))
        return self.begun[-1]

    def asked(self, later):
        if self.at_once:
            later.done.set()

    def batch(self, indices):
        if self.wrong is not None and self.wrong in indices.tolist():
            raise OSError("the disk is gone")
        kept = torch.tensor([place for place in indices.tolist() if place not in self.broken], dtype=torch.int64)
        return Batch(self.images[kept], kept % 2, kept)

    def read(self, indices):
        return self.begin(indices).result()


class Plain:
    """The same, read when it is asked for."""

    def __init__(self, *args, **kwargs):
        self.split = Slow(*args, **kwargs)

    def __len__(self):
        return len(self.split)

    def read(self, indices):
        return self.split.batch(indices)


def set_of(split):
    return type("Data", (), {"train": split, "test": split})()


# The same batches


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("start", [Position(), Position(2, 0, 2), Position(5, 1, 1), Position(4, 0, 4)])
def test_training_is_the_same_whoever_reads(images, workers, start):
    alone, data = (load("imagefolder", images, size=28, workers=count) for count in (0, workers))
    expected, found = ([*trained(one, start=start, epochs=3)[1]] for one in (alone, data))
    assert told(found) == told(expected)
    assert [r.epoch for r in found if r.ends_epoch] == [epoch for epoch in range(3) if (epoch, 0) >= start_of(start)]
    assert sum(r.images for r in found if r.epoch == 2) == 9
    assert [*data.skipped.items()] == [*alone.skipped.items()]
    assert {path.name for path in data.skipped} == {"02.png", "07.png"}


def start_of(start):
    return (start.epoch, 0) if start.batch < 4 else (start.epoch + 1, 0)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_test_is_the_same_whoever_reads(images, workers):
    net = build(LENET, devices=["cpu"])
    found = [
        evaluate(net, load("imagefolder", images, size=28, workers=count).test, batch_size=4, images=5)
        for count in (0, workers)
    ]
    assert [(one.loss, one.accuracy, one.images) for one in found] == [(found[0].loss, found[0].accuracy, 5)] * 2


def test_ranks_agree_in_the_same_order_however_far_each_has_read(images):
    """What they tell each other is a step's, a batch's, a step's …, though one reads ahead and one does not."""
    places = order(11, 5, 0)
    alone = list(batches(load("imagefolder", images, size=28, workers=0).train, 4, places))
    world = World(2, 1)
    sets = [load("imagefolder", images, size=28, workers=workers) for workers in (0, 3)]

    def work(ranks):
        split = sets[ranks.rank].train
        with Reader(split, own_slices(places, 4, 0, ranks)) as reader:
            return list(shared_batches(reader, 4, places, 0, ranks))

    found = world.everybody(work)
    assert [len(own) for own in found] == [3, 3]
    assert world.told == ["reading images"] * 3
    for whole, *parts in zip(alone, *found, strict=True):
        assert torch.equal(torch.cat([part.images[: len(part.labels)] for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


@pytest.mark.parametrize("limits", [{"epochs": 1}, {"epochs": 2}, {"steps": 3}, {"steps": 4}, {"steps": 9}])
@pytest.mark.parametrize("broken", [(), (0, 1, 2), (9, 10, 11), range(6)])
def test_records_are_those_of_a_split_that_reads_when_asked(limits, broken):
    found = [told(trained(set_of(kind(12, broken=broken)), **limits)[1]) for kind in (Slow, Plain)]
    assert found[0] == found[1] != []


def test_no_more_is_read_than_steps_need_and_ahead():
    split = Slow(60)
    list(trained(set_of(split), steps=4)[1])
    assert len(split.begun) <= 4 + 1  # whether the last step ends its epoch, the batch after it tells
    assert split.open == 0


# Ahead, and waiting


def test_batches_are_begun_ahead_and_results_asked_for_in_turn():
    split = Slow()
    slices = torch.arange(12).split(3)
    with Reader(split, slices) as reader:
        assert reader.read(slices[0]).indices.tolist() == [0, 1, 2]
        assert len(split.begun) == 1 + AHEAD
        assert not reader.ready
        split.begun[1].done.set()
        assert reader.ready
        assert reader.read(slices[1]).indices.tolist() == [3, 4, 5]
        assert [later.dropped for later in split.begun] == [False] * 4
    assert [later.dropped for later in split.begun] == [False, False, True, True]


def test_a_reader_that_is_asked_for_something_else_says_so():
    with Reader(Slow(), torch.arange(12).split(3)) as reader, pytest.raises(ValueError, match="another order"):
        reader.read(torch.tensor([3, 4, 5]))


def test_what_is_not_there_in_time_is_waited_for_and_told():
    split = Slow(at_once=False)
    _, records = trained(set_of(split), epochs=1)
    places = [chunk[0].item() for chunk in order(12, 5, 0).split(3)]
    split.done = {place: Event() for place in places}
    for place in (places[0], places[1], places[3]):
        split.done[place].set()

    def asked(later):
        if later.indices[0].item() == places[2]:
            threading.Timer(0.2, later.done.set).start()  # only once it is waited for

    split.asked = asked
    first, second, third, fourth = records
    assert second.waited >= 0.19  # for the third step's
    assert second.seconds >= second.waited
    assert max(r.waited for r in (first, third, fourth)) < 0.1


def test_a_step_does_not_wait_for_what_was_read_meanwhile(monkeypatch):
    """The next batch is being read while a step runs: here the step lasts until it is there."""
    split = Slow(at_once=False)
    real, limit = loop.training_step, []

    def step(*args):
        for later in split.begun:
            later.done.set()  # as threads would have it by now
        return real(*args)

    split.asked = lambda later: limit.append(later) if not later.done.is_set() else None
    split.done[order(12, 5, 0)[0].item()] = first = Event()
    first.set()
    monkeypatch.setattr(loop, "training_step", step)
    records = list(trained(set_of(split), epochs=1)[1])
    assert limit == []
    assert len(records) == 4
    assert max(r.waited for r in records) < 0.05


def test_without_threads_reading_is_waiting(images):
    data = load("imagefolder", images, size=28, workers=0)
    records = list(trained(data, epochs=1)[1])
    assert all(0 < r.waited < r.seconds for r in records[:-1])
    assert records[-1].waited < records[0].waited  # nothing was left to read


# Errors and ends


@pytest.mark.parametrize("kind", [Slow, Plain])
@pytest.mark.parametrize("number", range(4))
def test_an_error_comes_at_the_step_that_needs_the_batch(kind, number):
    wrong = order(12, 5, 0).split(3)[number][1].item()
    _, records = trained(set_of(kind(wrong=wrong)), epochs=2)
    assert [record.step for record in itertools.islice(records, number)] == list(range(number))
    with pytest.raises(OSError, match="the disk is gone"):
        next(records)
    assert next(records, None) is None


@pytest.mark.parametrize("workers", WORKERS)
def test_images_that_are_gone_in_the_second_epoch_end_the_training(images, workers):
    data = load("imagefolder", images, size=28, workers=workers)
    _, records = trained(data, epochs=2)
    for record in records:
        if record.step == 0:
            for path in images.glob("train/*/*.png"):
                path.write_bytes(b"")
        if record.ends_epoch:
            break
    with pytest.raises(UsageError, match=r"none of the 11 images in .*train can be read"):
        list(records)


@pytest.mark.parametrize("done", [0, 1, 5])
def test_whoever_closes_early_leaves_no_thread(images, done):
    data = load("imagefolder", images, size=28, workers=3)
    _, records = trained(data, steps=10**9)
    list(itertools.islice(records, done))
    assert bool(readers()) == bool(done)
    records.close()
    assert readers() == []


def test_neither_does_an_exception_in_the_loop_or_in_a_step(images, monkeypatch):
    data = load("imagefolder", images, size=28, workers=3)

    def at(number):
        for record in trained(data, steps=9)[1]:
            if record.step == number:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        at(2)
    assert readers() == []
    monkeypatch.setattr(loop, "_loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(trained(data, steps=9)[1])
    assert readers() == []
    with pytest.raises(ZeroDivisionError):
        evaluate(build(LENET, devices=["cpu"]), data.test, batch_size=2)
    assert readers() == []


def test_a_wish_to_stop_ends_after_the_step_with_no_thread(images):
    stop, data = Stop(), load("imagefolder", images, size=28, workers=2)
    net, records = trained(data, steps=9, stop=stop)
    assert next(records).step == 0
    stop.asked = 15
    assert [record.step for record in records] == [1]
    assert readers() == []
    with pytest.raises(Interrupted):
        evaluate(net, data.test, batch_size=2, stop=stop)


@pytest.mark.parametrize(
    ("waited", "share"), [((9.0, 0.5, 1.0), 25.0), ((9.0, 0.0, 0.0), 0.0), ((0.5,), 5.0), ((9.0, None, None), None)]
)
def test_the_share_of_waiting_leaves_the_first_step_out_unless_it_is_alone(waited, share):
    """Runs from before it was kept have no such figure."""
    seconds = [10.0, 2.0, 4.0]
    steps = [{"seconds": s} | ({} if w is None else {"waited": w}) for s, w in zip(seconds, waited, strict=False)]
    assert [metric.value for metric in waiting(steps)] == ([] if share is None else [share])


@pytest.mark.parametrize("more", [{"waited": w} for w in ("long", float("nan"), True)] + [{"warms_up": 1}], ids=str)
def test_a_record_with_another_kind_of_figure_is_not_whole(tmp_path, more):
    path = tmp_path / "steps.jsonl"
    record = {"schema": 1, "kind": "step", "step": 0, "loss": 1.0, "accuracy": 0.5, "images": 1, "seconds": 0.5}
    whole = {"waited": 0.25, "warms_up": True}
    path.write_text("".join(json.dumps(record | entries) + "\n" for entries in ({}, whole, whole | more)))
    records, cut = read_records(path)
    assert [one.get("waited") for one in records] == [None, 0.25]
    assert "line 3" in cut or "the last line" in cut


@pytest.mark.parametrize("wrong", [None, 7])
def test_a_training_that_is_over_holds_no_network(wrong):
    """Memory is measured next: what waits for the garbage collector would be freed under way."""

    def done():
        net, records = trained(set_of(Plain(wrong=wrong)), epochs=1)
        with pytest.raises(OSError, match="gone") if wrong else nullcontext():
            list(records)
        return weakref.ref(net)

    gc.collect()
    gc.disable()
    try:
        assert done()() is None
    finally:
        gc.enable()


# Threads


@pytest.mark.parametrize("workers", [1, 3])
def test_one_pool_reads_all_epochs_and_the_tests_between(images, monkeypatch, workers):
    started, start = [], threading.Thread.start

    def counted(thread):
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    data = load("imagefolder", images, size=28, workers=workers)
    net, records = trained(data, epochs=3)
    for record in records:
        if record.ends_epoch:
            evaluate(net, data.test, batch_size=2)
    assert started == [f"splitnet-reader-{number}" for number in range(workers)]


def test_a_pool_hands_on_errors_and_goes_on():
    with Pool(1) as pool:
        failed, done = pool.submit(lambda: 1 / 0), pool.submit(lambda: None)
        assert isinstance(failed.exception(30), ZeroDivisionError)
        assert done.result(30) is None
        with pool:
            pass
        assert pool.submit(lambda: None).result(30) is None  # still open
    with pytest.raises(RuntimeError, match="only in its context"):
        pool.submit(lambda: None)
    with pool:
        assert pool.submit(lambda: None).result(30) is None  # and again


def test_dropped_images_are_not_decoded(images):
    data = load("imagefolder", images, size=28, workers=1)
    hold = Event()
    with data.train.pool as pool:
        pool.submit(lambda: hold.wait(30) and None)
        pending = data.train.begin(torch.arange(11))
        pending.drop()
        hold.set()
        assert pending._parts[0].result(30) is None
    assert pending._reasons == [None] * 11
    assert data.skipped == {}


@pytest.mark.slow
def test_a_disk_that_does_not_answer_does_not_hold_the_interpreter():
    code = (
        "from threading import Event; from splitnet.training.prefetch import Pool\n"
        "pool = Pool(2).__enter__(); pool.submit(lambda: Event().wait(60) and None); print('over')"
    )
    start = time.perf_counter()
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")
    assert time.perf_counter() - start < 50


# Copies


def from_host():
    return {(c.target, c.bytes): n for c, n in fake.copies().items() if c.source == "cpu"}


PIXELS, LABELS = 3 * 3 * 32 * 32, 3 * 8


@pytest.mark.parametrize("limits", [{"steps": 3}, {"epochs": 1}, {"steps": 6}, {"epochs": 2}])
def test_each_batch_is_copied_once_and_none_that_is_not_used(limits):
    _, records = trained(set_of(Plain()), ["fake:0"], **limits)
    fake.clear_copies()
    steps = len(list(records))
    assert from_host() == {("fake:0", PIXELS): steps, ("fake:0", LABELS): steps}


def test_the_next_batch_is_copied_before_the_outcome_is_read_and_not_after_a_wish_to_stop(monkeypatch):
    stop, seen, real = Stop(), [], loop.training_step

    class Outcome:
        def __init__(self, pending):
            self.pending = pending

        def tolist(self):
            seen.append(from_host()["fake:0", PIXELS])
            return self.pending.tolist()

    monkeypatch.setattr(loop, "training_step", lambda *args: Outcome(real(*args)))
    fake.clear_copies()
    for record in trained(set_of(Plain(60)), ["fake:0"], stop=stop, steps=9)[1]:
        if record.step == 2:
            stop.asked = 2
    assert seen == [2, 3, 4, 4]


def test_a_batch_that_is_not_read_yet_is_not_copied_ahead():
    split = Slow(at_once=True)  # there when it is asked for, never before
    fake.clear_copies()
    _, records = trained(set_of(split), ["fake:0"], steps=9)
    next(records)
    assert from_host()["fake:0", PIXELS] == 1
    records.close()


def test_images_copied_ahead_give_the_same_training_and_test():
    found = []
    for devices in (["cpu"], ["fake:0"]):
        net, records = trained(set_of(Plain(11)), devices, epochs=3)
        losses = told(records)
        found.append((losses, evaluate(net, Plain(11), batch_size=4).loss))
    assert found[0] == found[1]


def test_copies_are_in_a_stream_beside_the_main_one_which_waits_for_it(monkeypatch):
    said = []
    module = torch.get_device_module("fake")
    real = module.stream
    monkeypatch.setattr(module, "stream", lambda stream: said.append("aside") or real(stream))
    wait = module.Stream.wait_stream
    monkeypatch.setattr(module.Stream, "wait_stream", lambda *a: said.append("waits") or wait(*a))
    list(trained(set_of(Plain()), ["fake:0"], steps=3)[1])
    assert said == ["aside", "waits"] * 2


def test_a_device_without_streams_copies_in_order(monkeypatch):
    module = torch.get_device_module("fake")
    expected = told(trained(set_of(Plain()), ["fake:0"], epochs=1)[1])
    monkeypatch.delattr(module, "stream")
    fake.clear_copies()
    assert told(trained(set_of(Plain()), ["fake:0"], epochs=1)[1]) == expected
    assert from_host()["fake:0", PIXELS] == 4


def test_several_processes_do_not_put_an_error_off():
    net, broken = build(LENET, devices=["cpu"]), Plain(wrong=3)
    for together in (False, True):
        with Reader(broken) as reader:
            ahead = Ahead(net, batches(reader, 3), reader, together)
            next(ahead)
            if together:
                with pytest.raises(OSError, match="gone"):
                    ahead.get_ready()
            else:
                ahead.get_ready()
                assert not ahead.ends
                with pytest.raises(OSError, match="gone"):
                    next(ahead)


def test_a_batch_that_is_freed_while_it_is_used_is_kept(fake_devices):  # noqa: F811
    """It was copied in a stream of its own, and the main one reads it: fake devices refuse it where nobody is told."""
    net = build(small("fashion"), devices=[str(device) for device in fake_devices])
    with Reader(Plain()) as reader:
        ahead = Ahead(net, batches(reader, 3), reader, False)
        next(ahead)
        ahead.get_ready()
        batch = next(ahead)
        assert [copy.device for copy in batch.copies] == list(fake_devices)
        read = [copy.float() for copy in batch.copies]
        del batch
        assert [float(x.max()) for x in read]
