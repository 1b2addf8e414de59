"""How replicas share batches, read by all processes of a job as threads of this one."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import small
from PIL import Image

from splitnet.parallel.placement import build
from splitnet.parallel.ranks import Ranks
from splitnet.training import folder
from splitnet.training.loop import evaluate
from splitnet.training.prefetch import Ahead
from splitnet.training.sharing import Interrupted, Stop, UnevenReadError, share_of, shared_batches, together
from splitnet.training.splits import Batch, batches


class World:
    """What threads that are ranks hand each other."""

    def __init__(self, replicas, towers):
        self.replicas, self.towers = replicas, towers
        self.size = replicas * towers
        self.rows = [None] * self.size
        self.met = [threading.Barrier(self.size, timeout=20) for _ in range(2)]
        self.told = []

    def everybody(self, work):
        """What `work(ranks)` returns in each rank, or the error that it ends with."""
        found = [None] * self.size

        def run(rank):
            try:
                found[rank] = work(Fake(self, rank))
            except Exception as error:
                found[rank] = error
                for barrier in self.met:
                    if not isinstance(error, UnevenReadError | Interrupted):
                        barrier.abort()

        threads = [threading.Thread(target=run, args=[rank]) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Fake:
    """As `Ranks`, for what sharing asks of it."""

    def __init__(self, world, rank):
        self.world, self.rank = world, rank
        self.replicas, self.towers = world.replicas, world.towers
        self.replica, self.tower = divmod(rank, world.towers)

    def numbers(self, own, what):
        if self.rank == 0:
            self.world.told.append(what)
        self.world.rows[self.rank] = [float(number) for number in own]
        self.world.met[0].wait()
        found = [list(row) for row in self.world.rows]
        self.world.met[1].wait()
        assert len({len(row) for row in found}) == 1  # as a collective would hang
        return found


def test_the_fake_asks_as_much_as_the_real_one():
    for name in ("numbers", "rank", "replicas", "towers", "replica", "tower"):
        assert hasattr(Ranks, name) or name in Ranks.__dataclass_fields__


class Places:
    """A split of which the image at place p is a pixel of p % 251; those in `broken` cannot be read."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, set(broken)

    def __len__(self):
        return self.count

    def read(self, indices):
        kept = torch.tensor([place for place in indices.tolist() if place not in self.broken], dtype=torch.int64)
        images = (kept % 251).to(torch.uint8).view(-1, 1, 1, 1) + 1
        return Batch(images, kept % 10, kept)


def shared(split, batch_size, order, replicas, towers=1, start=0):
    """For each global batch, what every rank reads of it."""
    found = World(replicas, towers).everybody(lambda r: list(shared_batches(split, batch_size, order, start, r)))
    for error in found:
        if isinstance(error, Exception):
            raise error
    return list(zip(*found, strict=True))


def check_shared(split, batch_size, order, replicas, start=0):
    alone = list(batches(split, batch_size, order, start))
    together_ = shared(split, batch_size, order, replicas, start=start)
    assert len(together_) == len(alone)
    for whole, parts in zip(alone, together_, strict=True):
        assert torch.cat([part.indices for part in parts]).tolist() == whole.indices.tolist()  # each once, in order
        assert torch.cat([part.labels for part in parts]).tolist() == whole.labels.tolist()
        assert {part.number for part in parts} == {whole.number}
        assert {part.total for part in parts} == {len(whole.labels)}
        assert len({len(part.images) for part in parts}) == 1  # equally many, with the padding
        place = 0
        for part in parts:
            held = len(part.labels)
            assert part.first == place
            assert part.padding == len(part.images) - held >= 0
            assert torch.equal(part.images[:held], whole.images[place : place + held])
            assert part.images[held:].count_nonzero() == 0
            place += held
        assert min(part.padding for part in parts) == 0


@given(
    replicas=st.sampled_from([1, 2, 3, 5]),
    count=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    start=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_every_image_is_read_once_and_in_its_place(replicas, count, batch_size, start, seed):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    check_shared(Places(count), batch_size, order, replicas, start)


@given(
    replicas=st.sampled_from([1, 2, 3, 5]),
    batch_size=st.integers(1, 14),
    broken=st.sets(st.integers(0, 23), max_size=24),
)
def test_broken_images_are_left_out_as_on_one_device(replicas, batch_size, broken):
    check_shared(Places(24, broken), batch_size, torch.arange(24), replicas)


@given(replicas=st.sampled_from([1, 2, 3, 5]), count=st.integers(1, 20))
def test_what_a_replica_takes_of_a_batch_that_all_have_read(replicas, count):
    [whole] = batches(Places(count), count)
    [parts] = shared(Places(count), count, torch.arange(count), replicas)
    for replica, part in enumerate(parts):
        own = share_of(whole, Fake(World(replicas, 1), replica))
        for name in ("first", "total", "padding", "number"):
            assert getattr(own, name) == getattr(part, name), name
        for name in ("images", "labels", "indices"):
            assert torch.equal(getattr(own, name), getattr(part, name)), name


def test_a_test_that_one_of_them_is_to_end_is_ended_by_all():
    """Only the others get the next batch ready, which all of them agree on."""

    def tested(ranks):
        net = build(small("fashion", 1), devices=["cpu"], seed=0)
        stop = Stop(asked=15 if ranks.rank == 1 else 0)
        try:
            return evaluate(net, Places(9), batch_size=4, ranks=ranks, stop=stop)
        except Interrupted as error:
            return error.number

    assert World(2, 1).everybody(tested) == [15, 15]


def test_a_test_is_of_all_images_however_soon_each_is_ready(monkeypatch):
    nets = [build(small("fashion", 1), devices=["cpu"], seed=0) for _ in range(3)]
    alone = evaluate(nets[2], Places(9), batch_size=4)
    ready = Ahead.get_ready
    monkeypatch.setattr(Ahead, "get_ready", lambda self: None if self.net is nets[1] else ready(self))

    def tested(ranks):
        return evaluate(nets[ranks.rank], Places(9), batch_size=4, ranks=ranks)

    for found in World(2, 1).everybody(tested):
        assert (found.images, found.accuracy) == (9, pytest.approx(alone.accuracy))
        assert found.loss == pytest.approx(alone.loss, rel=1e-5)


def test_alone_nothing_is_shared():
    order = torch.arange(10)
    for one, other in zip(shared_batches(Places(10), 4, order), batches(Places(10), 4, order), strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.first, one.total, one.padding) == (0, None, 0)


@pytest.mark.parametrize("towers", [2, 3])
def test_towers_of_a_replica_read_the_same(towers):
    for parts in shared(Places(11), 4, torch.arange(11), 2, towers):
        for replica in range(2):
            mine = parts[replica * towers : (replica + 1) * towers]
            assert len({tuple(part.indices.tolist()) for part in mine}) == 1
            assert len({part.first for part in mine}) == 1
    whole = [part.total for part, *_ in shared(Places(11), 4, torch.arange(11), 2, towers)]
    assert whole == [4, 4, 3]


def test_a_folder_is_shared_by_two_replicas_of_two_towers(tmp_path):
    for place in range(8):
        path = tmp_path / "train" / "ab"[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (20 * place, 1, 1)).save(path)
    (tmp_path / "train/a/2.png").write_bytes(b"no image")
    (tmp_path / "train/b/5.png").write_bytes(b"")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    sets = [folder.load(tmp_path, 8, 1) for _ in range(4)]  # each process has its own
    order = torch.randperm(8)
    found = World(2, 2).everybody(lambda r: list(shared_batches(sets[r.rank].train, 3, order, 0, r)))
    alone = list(batches(folder.load(tmp_path, 8, 1).train, 3, order))
    for whole, *parts in zip(alone, *found, strict=True):
        for first, second in (parts[::2], parts[1::2]):
            held = torch.cat([part.images[: len(part.labels)] for part in (first, second)])
            assert torch.equal(held, whole.images)
            assert torch.equal(torch.cat([first.labels, second.labels]), whole.labels)
            assert (first.total, second.first) == (len(whole.labels), len(first.labels))
    skipped = [{path.name for path in one.skipped} for one in sets]
    assert skipped[0] == skipped[1]
    assert skipped[2] == skipped[3]
    assert skipped[0] | skipped[2] == {"2.png", "5.png"}


@pytest.mark.parametrize(("replicas", "rank", "first"), [(1, 1, 0), (2, 1, 0), (2, 3, 2)])
def test_towers_that_read_different_images_end_all_of_them(replicas, rank, first):
    """One process could not read what its neighbour read."""

    def work(ranks):
        split = Places(12, broken={1, 7, 10} if ranks.rank == rank else ())
        return list(shared_batches(split, 12, torch.arange(12), 0, ranks))

    found = World(replicas, 2).everybody(work)
    held = 12 // replicas
    left = held - sum(place // held == rank // 2 for place in (1, 7, 10))
    assert left < held
    assert [type(error) for error in found] == [UnevenReadError] * 2 * replicas
    assert {str(error) for error in found} == {
        f"rank {rank} read {left} images of a batch of which rank {first} read {held}"
    }


def test_towers_that_read_as_many_but_other_images_end_all_of_them():
    """Each could not read another one."""

    def work(ranks):
        split = Places(12, broken={1} if ranks.tower == 0 else {2})
        return list(shared_batches(split, 6, torch.arange(12), 0, ranks))

    found = World(2, 2).everybody(work)
    assert {str(error) for error in found} == {"rank 1 read other images of a batch than rank 0"}
    assert [type(error) for error in found] == [UnevenReadError] * 4


# One mind


@pytest.mark.parametrize(("replicas", "towers"), [(1, 1), (1, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize("number", [0, 2, 15])
def test_all_agree_on_the_end_and_on_sums(replicas, towers, number):
    world = World(replicas, towers)
    stops = [Stop() for _ in range(world.size)]
    stops[-1].asked = number
    found = world.everybody(lambda r: together([r.rank, 1.5], stops[r.rank], r, "a step"))
    assert found == [[sum(range(world.size)), 1.5 * world.size]] * world.size
    assert [stop.agreed for stop in stops] == [number] * world.size
    assert world.told == ["a step"]


def test_of_two_signals_all_take_the_same():
    world = World(2, 1)
    stops = [Stop(asked=2), Stop(asked=15)]
    world.everybody(lambda r: together([], stops[r.rank], r, "a step"))
    assert [stop.agreed for stop in stops] == [15, 15]


def test_alone_a_wish_is_agreed():
    stop = Stop(asked=2)
    assert together([1.0, 2.0], stop, None, "a step") == [1.0, 2.0]
    assert stop.agreed == 2


def test_nobody_agrees_to_what_nobody_wants():
    stop = Stop()
    together([], stop, None, "a step")
    assert stop.agreed == 0
