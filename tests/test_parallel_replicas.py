"""Data parallelism in one process: the whole network's training, divided, and every byte of its gradients counted."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from layouts import relative, small
from quick import quick

from splitnet.comparison import contestants, replicated_step
from splitnet.network.weights import join
from splitnet.parallel import fake
from splitnet.parallel.placement import Placement, build, place
from splitnet.parallel.replicas import BUCKET, GRADIENTS, Replicas, replicate
from splitnet.training.data import load
from splitnet.training.loop import training_step
from splitnet.training.optimizer import make_optimizer

fake.install(3)
FAKES = ("fake:0", "fake:1")
SIZES = (5, 4, 2, 1, 5)
"""Images of each step: even and uneven shares, and one that leaves a replica without any."""


@pytest.fixture(scope="module")
def batches():
    table = small("fashion")
    data = load("synthetic", size=table.size, train=sum(SIZES), test=1, channels=1, classes=10)
    return [data.train.read(torch.arange(sum(SIZES)).split(SIZES)[i]) for i in range(len(SIZES))]


def fitted(name, batches):
    """A small table of that many channels, and the batches with as many."""
    table = small(name)
    return table, [replace(b, images=b.images.repeat(1, table.channels, 1, 1)) for b in batches]


def gradients(net):
    """In whole-network shapes, on the CPU."""
    return join(net.architecture, [{name: p.grad for name, p in tower.named_parameters()} for tower in net.hosted])


def steps(net, batches, step, optimizer):
    """Loss, gradients and weights of each step."""
    learner = make_optimizer(net.parameters(), optimizer, 0.01)
    for number, batch in enumerate(batches):
        net.moment = replace(net.moment, step=number)
        loss = step(net, learner, batch)
        one = net.nets if isinstance(net, Replicas) else [net]
        yield loss, [gradients(n) for n in one], [n.whole_state_dict() for n in one]


def whole(table, batches, dtype=torch.float64, optimizer="sgd"):
    net = build(table, devices=["cpu"], seed=3).to(dtype)
    return list(steps(net, batches, lambda *given: training_step(*given)[0].item(), optimizer))


def replicated(table, batches, devices=FAKES, dtype=torch.float64, optimizer="sgd"):
    copies = replicate(table, [torch.device(d) for d in devices], seed=3).to(dtype)
    return list(steps(copies, batches, lambda *given: sum(part.item() for part in replicated_step(*given)), optimizer))


def furthest(one, two):
    return max(relative(a, b) for a, b in zip(one.values(), two.values(), strict=True))


THREE = ("cpu", "cpu", "cpu")


@pytest.mark.parametrize(
    ("name", "devices"), quick(product(["fashion", "alexnet"], [FAKES, THREE]), ("fashion", THREE), ("alexnet", FAKES))
)
def test_replicas_train_as_the_whole_network_does(name, devices, batches):
    """Dropout on, an uneven batch and one smaller than the replicas among them."""
    table, batches = fitted(name, batches)
    pairs = list(zip(whole(table, batches), replicated(table, batches, devices), strict=True))
    for (loss, [gradient], [weights]), (same_loss, gradients_of, weights_of) in pairs:
        assert same_loss == pytest.approx(loss, abs=1e-12)
        assert furthest(gradients_of[0], gradient) < 1e-12
        assert furthest(weights_of[0], weights) < 1e-12
    assert pairs[0][0][0] != pytest.approx(pairs[-1][0][0], abs=1e-3)


@pytest.mark.parametrize("optimizer", quick(["sgd", "adam"], "adam"))
def test_replicas_stay_equal_bit_for_bit(optimizer, batches):
    for _, gradients_of, weights_of in replicated(
        *fitted("alexnet", batches), dtype=torch.float32, optimizer=optimizer
    ):
        for one, *others in (gradients_of, weights_of):
            assert all(torch.equal(one[name], other[name]) for other in others for name in one)


@pytest.mark.slow
def test_losses_in_float32(batches):
    table, batches = fitted("fashion", batches)
    found = zip(whole(table, batches, torch.float32), replicated(table, batches, dtype=torch.float32), strict=True)
    assert max(abs(a[0] - b[0]) for a, b in found) < 1e-4


@pytest.mark.parametrize(
    ("count", "given"), [(6, [(0, 3), (3, 6)]), (5, [(0, 3), (3, 5)]), (1, [(0, 1)]), (2, [(0, 1), (1, 2)])]
)
def test_images_are_divided_in_order_and_keep_their_places(count, given):
    copies = replicate(small("fashion"), [torch.device("cpu")] * 2, seed=0)
    copies.moment = replace(copies.moment, step=7)
    shares = list(copies.divide(count))
    assert [(share.start, share.stop) for _, share in shares] == given
    assert [net for net, _ in shares] == copies.nets[: len(given)]
    assert [(net.moment.first_image, net.moment.step) for net, _ in shares] == [(start, 7) for start, _ in given]


def test_with_many_replicas_the_last_get_fewer_or_none():
    copies = replicate(small("fashion"), [torch.device("cpu")] * 4, seed=0)
    assert [(share.start, share.stop) for _, share in copies.divide(5)] == [(0, 2), (2, 4), (4, 5)]


@pytest.mark.parametrize(("bucket", "count"), quick(product([1, 5000, BUCKET], [2, 3]), (1, 2), (5000, 3), (BUCKET, 2)))
def test_every_byte_between_devices_is_in_the_ledger_and_derived(count, bucket, batches):
    table = small("fashion")
    devices = [torch.device(f"fake:{i}") for i in range(count)]
    copies = replicate(table, devices, seed=0)
    copies.bucket = bucket
    optimizer = make_optimizer(copies.parameters(), "sgd")
    fake.clear_copies()
    for batch in batches[:2]:
        replicated_step(copies, optimizer, batch)
    assert copies.bytes_exchanged() == 2 * (count - 1) * table.parameters * 4
    assert copies.ledger.bytes(GRADIENTS, "backward") == copies.ledger.bytes() == 2 * copies.bytes_exchanged()
    between = Counter()
    for copy, times in fake.copies().items():
        if "cpu" not in (copy.source, copy.target):
            assert copy.file.endswith("parallel/replicas.py")
            between[copy.source, copy.target] += times * copy.bytes
    known = {(f"fake:{t.source}", f"fake:{t.target}"): t.bytes for t in copies.ledger.transfers()}
    assert between == known
    assert len(known) == count * (count - 1)


def test_gradients_are_sent_in_few_pieces():
    copies = replicate(small("fashion"), [torch.device(d) for d in FAKES], seed=0)
    copies.backward([net(torch.rand(1, 1, 96, 96).to(FAKES[i])).sum() for i, net in enumerate(copies.nets)])
    assert copies.ledger.count == 4  # one bucket: two pieces there, two sums back
    size = 4 * small("fashion").parameters // 4
    copies.bucket = size
    copies.backward([net(torch.rand(1, 1, 96, 96).to(FAKES[i])).sum() for i, net in enumerate(copies.nets)])
    assert 2 <= (copies.ledger.count - 4) / 4 <= 4


def test_gradients_lie_as_their_weights_do():
    """The optimizer's fused form wants it, and convolutions are fast in it."""
    copies = replicate(small("alexnet"), [torch.device("cpu")] * 2, seed=0)
    copies.backward([net(torch.rand(1, 3, 96, 96)).sum() for net in copies.nets])
    assert {p.grad.stride() == p.stride() for p in copies.parameters()} == {True}
    assert not copies.nets[1].hosted[0]["conv3"].weight.is_contiguous()


def test_gradients_go_both_ways_of_the_link_at_once():
    """Either sends half of its gradients to be summed, and then half of the sums."""
    net = replicate(small("fashion"), [torch.device(name) for name in FAKES], seed=0)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    fake.reset()
    try:
        fake.set_link(1e6, 0)
        for device in FAKES:
            fake.set_speed(device, 1e9)
        net.backward([])
        found = [fake.clock(device) for device in FAKES]
    finally:
        fake.reset()
    assert found == [pytest.approx(4e-6 * net.architecture.parameters, rel=1e-3)] * 2


# In the comparison


@pytest.mark.parametrize(
    ("devices", "towers", "there"),
    [
        (["fake:0", "fake:1"], 2, ["fake:0", "fake:1"]),
        (["fake:2", "cpu"], 2, ["fake:2", "cpu"]),
        (["fake:1", "fake:1", "fake:0", "fake:2"], 4, ["fake:1", "fake:0"]),
        (["fake:0", "fake:0"], 2, None),
        (["cpu", "cpu"], 2, None),
        (["fake:0"], 2, None),
        (["cpu"], 1, None),
    ],
)
def test_replicas_compete_where_there_are_two_devices(devices, towers, there):
    table = small("fashion", towers)
    found = {name: (which, where) for name, which, where in contestants(table, place(table, devices))}
    names = ["towers"] * (len(devices) > 1) + ["whole"] * (towers > 1) + ["replicas"] * bool(there) + ["dense"]
    assert list(found) == names
    if there:
        assert found["replicas"] == (
            table,
            Placement(tuple(map(torch.device, there)), "the first two of the run's devices"),
        )
