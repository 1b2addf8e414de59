"""Every fault of a link is found, named and placed; and a sound link is called sound."""

import os
import socket
import time
from itertools import cycle, permutations, product
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from layouts import small
from quick import few

from splitnet.parallel import device_links, fake, links, probes
from splitnet.parallel.collective import LostRankError
from splitnet.parallel.links import UnsoundLinkError, check_devices, check_ranks, refuse_unsound
from splitnet.parallel.probes import DTYPES, STAGING, Contents, LinkReport, difference
from splitnet.testing import fake_devices  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fake_devices")]

ONE, TWO, HOST = "fake:0", "fake:1", "cpu"
WAYS = list(permutations((ONE, TWO, HOST), 2))
KINDS = ("zeros", "stale", "flip", "misroute")
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check(*, brief, devices=(ONE, TWO), batch=3, **settings):
    return check_devices([torch.device(d) for d in devices], small("fashion"), batch, brief=brief, **settings)


def place(report):
    return report.source, report.target


def unsound(reports):
    """(source, target) of copies that went wrong."""
    return [place(report) for report in reports if report.wrong and report.what == "copies"]


@pytest.fixture
def swift(monkeypatch):
    """The full check without its two largest sizes."""
    monkeypatch.setattr(probes, "STAGING", 1 << 12)


# What is sent


def test_every_device_makes_the_same_contents():
    host, device = (Contents(torch.device(name), 1 << 12, seed=3) for name in (HOST, ONE))
    fake.clear_copies()
    for dtype in DTYPES:
        made = [device.make(number, dtype, 101) for number in (0, 1, 70000)]
        assert not fake.copies()  # no reference travels
        for number, x in zip((0, 1, 70000), made, strict=True):
            assert torch.equal(x.cpu().view(torch.uint8), host.make(number, dtype, 101).view(torch.uint8))
        fake.clear_copies()


def test_contents_are_new_each_time_and_with_each_seed():
    contents, other = (Contents(torch.device(HOST), 1 << 12, seed) for seed in (0, 1))
    made = [contents.make(number, torch.int64, 512) for number in range(200)]
    made.append(other.make(0, torch.int64, 512))
    for i, x in enumerate(made):
        for y in made[:i]:
            assert (x.view(torch.uint8) != y.view(torch.uint8)).double().mean() > 0.98


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.is_floating_point], ids=str)
def test_floats_have_nans_of_several_payloads_and_a_negative_zero(dtype):
    x = Contents(torch.device(HOST), 1 << 20, seed=0).make(0, dtype, 65537)
    payloads = x[x.isnan()].view(BITS[dtype.itemsize])
    assert len(payloads.unique()) > 10
    assert payloads[-1] == -1  # all ones
    assert x[-1] == 0
    assert x[-1].signbit()
    assert x.isinf().sum() >= 0


def test_whole_numbers_sum_exactly_in_any_order():
    contents = Contents(torch.device(HOST), 1 << 12, seed=0)
    parts = [contents.integers(number, 1000) for number in range(16)]
    assert all((part >= 0).all() and (part < 2**20).all() and torch.equal(part, part.round()) for part in parts)
    assert torch.equal(sum(parts), sum(reversed(parts)))
    assert len(parts[0].unique()) > 900


def test_the_full_check_sends_every_dtype_odd_sizes_the_crossings_and_more_than_a_staging_buffer():
    table = small("alexnet")
    full = probes.probes(table, 5, brief=False)
    for dtype in DTYPES:
        assert {p.count for p in full if p.dtype == dtype} >= {1, 257, 65537}
    floats = {p.bytes for p in full if p.dtype == torch.float32}
    assert floats >= {t.bytes for t in table.transfers(5)}
    assert max(floats) > STAGING
    assert {p.round for p in full} == set(range(6))


def test_a_brief_check_stays_small_whatever_the_batch():
    assert max(p.bytes for p in probes.probes(small("alexnet"), 60000, brief=True)) == 8 << 20
    assert {p.dtype for p in probes.probes(small("alexnet"), 1, brief=True)} == {
        torch.float32,
        torch.uint8,
        torch.int64,
    }


# What is wrong with it


def bits(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arrived", "kind", "detail"),
    [
        (bits(0, 0, 0), "zeros", "12 of 12 bytes differ, the first is byte 0"),
        (bits(0x01020304, 0, 0), "zeros", "8 of 12 bytes differ, the first is byte 4"),
        (bits(0x01020304, 0x05060708, 0x090A0E0C), "garbled", "1 of 12 bytes differ, the first is byte 9"),
        (bits(0x01020304, 0x45060708, 0x090A0B0C), "flip", "bit 6 of byte 7 of 12"),
        (bits(13, 14, 15), "stale", "those of 2 before"),
    ],
)
def test_what_arrived_is_named(arrived, kind, detail):
    sent = bits(0x01020304, 0x05060708, 0x090A0B0C)
    found = difference(arrived, sent, "x", earlier=[bits(7, 8, 9), bits(13, 14, 15)])
    assert found.kind == kind
    assert detail in found.detail
    assert found.size == 12


def test_bits_count_where_values_do_not():
    nan = torch.tensor([0x7FC00001, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert difference(nan.clone(), nan, "x") is None
    other = torch.tensor([0x7FC00001, 0x7FC00003], dtype=torch.int32).view(torch.float32)
    assert difference(other, nan, "x").kind == "flip"
    assert difference(torch.tensor([0.0, -0.0]), torch.tensor([-0.0, -0.0]), "x").kind == "flip"


# Devices


@pytest.mark.parametrize("link", ["device", "host"])
def test_sound_devices_are_sound(link):
    reports = check(brief=False, link=link)
    assert all(report.sound for report in reports)
    assert [place(r) for r in reports if r.what == "copies"] == [
        (ONE, HOST),
        (TWO, HOST),
        (HOST, ONE),
        (HOST, TWO),
        (ONE, TWO),
        (TWO, ONE),
    ]
    crossed = {r.what: 0 for r in reports if r.what != "copies"}
    assert list(crossed) == [f"{row} {phase}" for row in ("conv3", "fc6", "fc7", "fc8") for phase in PHASES]
    refuse_unsound(reports)


PHASES = ("forward", "backward")


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
def test_a_brief_check_finds_each_fault_on_each_way_and_no_other(kind, way):
    with fake.fault(kind, source=way[0], target=way[1]):
        reports = check(brief=True)
    assert unsound(reports) == [way]
    [report] = [report for report in reports if report.wrong]
    # What was sent from the host and went elsewhere has left whatever was there.
    assert report.worst.kind == kind or (kind == "misroute" and way[0] == HOST)
    with pytest.raises(UnsoundLinkError) as refused:
        refuse_unsound(reports)
    message = str(refused.value)
    assert f"{way[0]} -> {way[1]}" in message
    assert "\n" not in message
    assert ("--link host" in message) == (HOST not in way)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "way"), few(product(KINDS, WAYS), *zip(cycle(KINDS), WAYS, strict=False)))
def test_the_full_check_finds_what_goes_wrong_now_and_then(swift, kind, way):
    with fake.fault(kind, source=way[0], target=way[1], every=3):
        assert way in unsound(check(brief=False, batch=1))


def test_a_misrouted_tensor_is_said_to_be_where_it_is():
    with fake.fault("misroute", source=ONE, target=TWO, arrives=HOST):
        [report] = [r for r in check(brief=True) if r.wrong]
    assert report.worst.detail == "arrived on cpu, not on fake:1"


def test_what_is_read_over_a_bad_link_is_not_judged(swift):
    with fake.fault("flip", source=TWO, target=HOST):
        reports = check(brief=False)
    untested = {place(report) for report in reports if report.untested}
    assert untested == {(HOST, TWO), (ONE, TWO)}
    assert all("fake:1 -> cpu" in report.untested for report in reports if report.untested)
    assert all(report.what == "copies" for report in reports)


def test_two_flips_are_not_one_sound_link():
    with fake.fault("flip"):
        assert unsound(check(brief=True)) == [(ONE, HOST), (TWO, HOST)]


def test_a_source_that_sending_changes_is_noticed(monkeypatch):
    carry = device_links.DeviceLinks._copy

    def spoiling(self, x, target):
        arrived = carry(self, x, target)
        if str(x.device) == ONE and str(target) == TWO:
            x.view(torch.uint8)[:1].bitwise_xor_(4)
        return arrived

    monkeypatch.setattr(device_links.DeviceLinks, "_copy", spoiling)
    [report] = [r for r in check(brief=True) if not r.sound]
    assert (place(report), report.worst.kind) == ((ONE, TWO), "source changed")


@pytest.mark.parametrize("method", ["all_gather", "gather"])
def test_an_exchange_that_is_wrong_over_sound_links_is_found(swift, monkeypatch, method):
    right = getattr(device_links.LocalExchange, method)

    def swapped(self, xs, row):
        return right(self, [x.flip(1) for x in xs], row)

    monkeypatch.setattr(device_links.LocalExchange, method, swapped)
    reports = check(brief=False)
    assert unsound(reports) == []
    wrong = {report.what for report in reports if report.wrong}
    rows = ("conv3", "fc6", "fc7") if method == "all_gather" else ("fc8",)
    assert wrong == {f"{row} {phase}" for row in rows for phase in PHASES}


def test_a_gradient_of_one_reader_only_is_found(swift, monkeypatch):
    right = device_links.LocalExchange.send

    def detached(self, xs, row, readers):
        return {pair: part.detach() for pair, part in right(self, xs, row, readers).items()}

    monkeypatch.setattr(device_links.LocalExchange, "send", detached)
    wrong = {report.what for report in check(brief=False) if report.wrong}
    assert wrong >= {"conv3 backward", "fc6 backward", "fc7 backward"}


def test_a_slow_link_is_sound_and_its_times_show():
    with fake.fault("slow", source=ONE, target=TWO, factor=8):
        reports = check(brief=False)
    assert all(report.sound for report in reports)
    times = {place(r): (r.rates[0], r.delays[0]) for r in reports if r.what == "copies"}
    for slow, usual in zip(times[ONE, TWO], times[TWO, ONE], strict=True):
        assert max(slow / usual, usual / slow) == pytest.approx(8, rel=0.01)


def test_emulated_times_are_those_of_the_link():
    fake.set_link(bytes_per_second=1e9, latency=1e-3)
    [report] = [r for r in check(brief=False) if place(r) == (ONE, TWO) and r.what == "copies"]
    size = STAGING + 4099
    assert report.rates == pytest.approx([size / (1e-3 + size / 1e9)] * len(report.rates))
    assert report.delays == pytest.approx([1e-3 + 4e-9] * len(report.delays))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_through_the_host_a_bad_link_between_devices_does_not_matter(swift, kind):
    with fake.fault(kind, source=ONE, target=TWO):
        assert all(report.sound for report in check(brief=False, link="host"))
        assert unsound(check(brief=True)) == [(ONE, TWO)]


def test_one_device_has_its_links_to_the_host_alone_and_the_host_none(swift):
    assert [place(r) for r in check(brief=False, devices=(ONE, ONE))] == [(ONE, HOST), (HOST, ONE)]
    assert check(brief=True, devices=(HOST, HOST)) == []


def test_a_table_that_nothing_crosses_can_be_checked(swift):
    table = small("lenet", towers=1)
    assert all(r.sound for r in check_devices([torch.device(ONE)], table, 3, brief=False))


def test_a_brief_check_is_brief():
    check(brief=True)
    start = time.process_time()
    check(brief=True, batch=64)
    assert time.process_time() - start < 5  # far above what it takes: no seconds are promised here


def test_reports_say_in_one_line_what_they_found():
    report = LinkReport("a", "b").with_probe(8, None)
    assert str(report) == "a -> b: all 1 tensors are as they were sent"
    found = difference(bits(1), bits(0), "int32 x 1, round 0")
    larger = difference(bits(1, 1), bits(0, 0), "int32 x 2, round 0")
    report = report.with_probe(8, larger).with_probe(4, found)
    assert (report.tensors, report.wrong, report.bytes, report.worst) == (3, 2, 20, larger)
    assert str(report).startswith("a -> b: 2 of 3 tensors are wrong (garbled: int32 x 2, round 0: 2 of 8 bytes differ")


# Ranks: several processes over gloo, one of which may receive something else than was sent.

CPU = torch.device("cpu")


class Spoiled:
    """`dist.recv`, on a link that is at fault."""

    def __init__(self, kind, source):
        self.kind, self.source, self.right, self.earlier = kind, source, dist.recv, {}

    def __call__(self, tensor, src=None, *args, **kwargs):
        found = self.right(tensor, src, *args, **kwargs)
        if src == self.source:
            fresh, data = tensor.clone(), tensor.view(torch.uint8)
            if self.kind == "zeros":
                tensor.zero_()
            elif self.kind == "flip":
                data[len(data) // 2] ^= 16
            else:
                tensor.copy_(self.earlier.get((tensor.shape, tensor.dtype), fresh))
                self.earlier[tensor.shape, tensor.dtype] = fresh
        return found


def doubled(right):
    """A collective whose result is something else."""

    def spoiled(*args, **kwargs):
        found = right(*args, **kwargs)
        result = args[0][0] if isinstance(args[0], list) else args[0]
        result.view(torch.uint8)[-1:] ^= 1
        return found

    return spoiled


ATTEMPTS = {
    "sound": {"brief": False},
    "alone": {"alone": True},
    **{kind: {"fault": (kind, 0, 1)} for kind in ("zeros", "stale", "flip", "all_gather", "reduce_scatter")},
}
"""What is done to the links of two ranks, one after the other; a fault is of what goes from one to another."""


def work(rank, world, port, attempts, queue):
    """One rank: what it found in each attempt, as plain data."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    groups = [dist.new_group([first, first + 1]) for first in range(0, world, 2)]
    found = {name: attempt(rank, world, groups[rank // 2], **settings) for name, settings in attempts.items()}
    queue.put((rank, found))
    dist.destroy_process_group()


def attempt(rank, world, group, *, brief=True, alone=False, fault=("", 0, -1), dies=None):
    ranks = SimpleNamespace(rank=rank, world=world, device=CPU, tower_group=None if alone else group, notice=None)
    kind, source, target = fault
    if dies == rank:
        os._exit(0)
    with pytest.MonkeyPatch.context() as patch:
        if rank == target:
            collective = kind in ("all_gather", "reduce_scatter")
            spoiled = doubled(getattr(dist, kind)) if collective else Spoiled(kind, source)
            patch.setattr(dist, kind if collective else "recv", spoiled)
        try:
            reports = check_ranks(ranks, small("fashion"), 2, brief=brief)
        except LostRankError as error:
            return str(error)
    return [(*place(r), r.what, r.wrong, r.worst and r.worst.kind, r.tensors, r.rates) for r in reports]


def ended(world, tell, attempts):
    """What ranks ended with, of which `tell` say so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(work, (world, port, attempts, queue), world, join=False)
    try:
        deadline = time.monotonic() + 120
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return dict(queue.get() for _ in range(tell))


@pytest.fixture(scope="module")
def two_ranks():
    """The list that each attempt of two ranks ended with, the same for both."""
    found = ended(2, 2, ATTEMPTS)
    assert found[0] == found[1]
    return found[0]


@pytest.mark.ranks
def test_two_sound_ranks_are_sound_and_timed(two_ranks):
    found = two_ranks["sound"]
    assert [entry[:3] for entry in found if entry[2] == "copies"] == [
        ("rank 0", "rank 1", "copies"),
        ("rank 1", "rank 0", "copies"),
    ]
    collectives = [entry[:3] for entry in found if entry[2] != "copies"]
    rows = ("conv3", "fc6", "fc7", "fc8")
    assert {entry[2] for entry in collectives} == {f"{r} {c}" for r in rows for c in ("all_gather", "reduce_scatter")}
    assert len(collectives) == 2 * 2 * len(rows)
    assert all(wrong == 0 and tensors > 0 for *_, wrong, _, tensors, _ in found)
    assert all(len(entry[-1]) == links.TIMED for entry in found if entry[2] == "copies")


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["zeros", "stale", "flip"])
def test_a_fault_of_one_rank_is_placed_by_all(two_ranks, kind):
    wrong = [(source, target, what, kind) for source, target, what, n, kind, *_ in two_ranks[kind] if n]
    assert wrong == [("rank 0", "rank 1", "copies", kind)]


@pytest.mark.ranks
def test_four_ranks_find_one_bad_pair_and_go_on():
    found = ended(4, 4, {"flip": {"fault": ("flip", 3, 1)}})
    assert all(found[rank] == found[0] for rank in range(4))
    assert [entry[:2] for entry in found[0]["flip"] if entry[3]] == [("rank 3", "rank 1")]
    assert len([entry for entry in found[0]["flip"] if entry[2] == "copies"]) == 12


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter"])
def test_a_collective_that_is_wrong_is_found(two_ranks, kind):
    assert {entry[:3] for entry in two_ranks[kind] if entry[3]} == {
        ("rank 0", "rank 1", f"{row} {kind}") for row in ("conv3", "fc6", "fc7", "fc8")
    }


@pytest.mark.ranks
def test_ranks_without_other_towers_have_no_collectives(two_ranks):
    assert {entry[2] for entry in two_ranks["alone"]} == {"copies"}


@pytest.mark.ranks
def test_a_rank_that_dies_is_a_lost_rank():
    found = ended(2, 1, {"dies": {"dies": 1}})
    assert found[0]["dies"].startswith("test of links: rank 0 to rank 1: ")
