"""The loop: whole records, the same losses in every layout, and nothing copied but images, labels and one outcome."""

from dataclasses import replace
from itertools import islice, product

import pytest
import torch
from layouts import relative, small
from PIL import Image
from quick import quick

from splitnet.errors import UsageError
from splitnet.network.layers import Moment
from splitnet.parallel import fake
from splitnet.parallel.placement import build
from splitnet.training.data import Batch, HeldSplit, load, order
from splitnet.training.folder import FolderSplit
from splitnet.training.loop import DivergedError, Position, evaluate, network_images, train, training_step
from splitnet.training.optimizer import make_optimizer
from splitnet.training.prefetch import Pool

FASHION = small("fashion")
SIDE = 32
"""Of synthetic images."""
PAIR = ["fake:0", "fake:1"]


def images(table, train=20, test=10, seed=0):
    """A synthetic data set for a table."""
    return load(
        "synthetic", size=table.size, seed=seed, train=train, test=test, channels=table.channels, classes=table.classes
    )


def losses(table=FASHION, devices=("cpu",), *, optimizer="sgd", lr=0.01, dtype=torch.float32, **limits):
    """Losses of a training, and the weights it ends with."""
    limits = {"batch_size": 4, "seed": 0, "steps": 20} | limits
    net = build(table, devices=list(devices), seed=limits["seed"]).to(dtype)
    learner = make_optimizer(net.parameters(), optimizer, lr)
    found = train(net, images(table, 24).train, learner, **limits)
    return [step.loss for step in found], net.whole_state_dict()


def lenet(seed=0):
    net = build("lenet", towers=1, devices=["cpu"], seed=seed)
    return net, make_optimizer(net.parameters(), "sgd")


# Records


def test_records_of_whole_epochs():
    net, optimizer = lenet()
    split = images(net.architecture, 10).train
    records = list(train(net, split, optimizer, batch_size=4, seed=0, epochs=2))
    assert [r.step for r in records] == list(range(6))
    assert [r.epoch for r in records] == [0, 0, 0, 1, 1, 1]
    assert [r.images for r in records] == [4, 4, 2, 4, 4, 2]
    assert [r.ends_epoch for r in records] == [False, False, True] * 2
    assert all(r.seconds > 0 and r.loss > 0 and 0 <= r.accuracy <= 1 for r in records)


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 7])
def test_records_of_so_many_steps(steps):
    net, optimizer = lenet()
    split = images(net.architecture, 10).train
    records = list(train(net, split, optimizer, batch_size=4, seed=0, steps=steps))
    assert [r.step for r in records] == list(range(steps))
    assert [r.epoch for r in records] == [step // 3 for step in range(steps)]
    assert [r.ends_epoch for r in records] == [step % 3 == 2 for step in range(steps)]


def test_a_batch_larger_than_the_set_is_the_set():
    net, optimizer = lenet()
    [record] = train(net, images(net.architecture, 10).train, optimizer, batch_size=64, seed=0, epochs=1)
    assert (record.images, record.ends_epoch) == (10, True)


def test_accuracy_is_of_the_batch_before_the_update():
    net, optimizer = lenet()
    split = images(net.architecture, 8).train
    batch = split.read(order(8, 3, 0))
    with torch.no_grad():
        right = net(network_images(net, batch.images)).argmax(1) == batch.labels
    [record] = train(net, split, optimizer, batch_size=8, seed=3, steps=1)
    assert record.accuracy == right.double().mean().item()


def test_every_epoch_sees_every_image_once_in_another_order():
    class Noted:
        def __init__(self, split):
            self.split, self.seen = split, []

        def __len__(self):
            return len(self.split)

        def read(self, indices):
            self.seen += indices.tolist()
            return self.split.read(indices)

    net, optimizer = lenet()
    split = Noted(images(net.architecture, 10).train)
    list(train(net, split, optimizer, batch_size=4, seed=0, epochs=2))
    first, second = split.seen[:10], split.seen[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_one_order_for_all_epochs_is_the_first_ones():
    seen = []

    class Noted(HeldSplit):
        def read(self, indices):
            seen.append(indices.tolist())
            return super().read(indices)

    net, optimizer = lenet()
    split = images(net.architecture, 10).train
    list(train(net, Noted(split.images, split.labels), optimizer, batch_size=4, seed=3, epochs=3, reshuffle=False))
    expected = order(10, 3, 0).tolist()
    assert seen == [expected[:4], expected[4:8], expected[8:]] * 3


def test_a_record_comes_after_its_update_and_dropout_is_on():
    net = build(FASHION, devices=["cpu", "cpu"]).eval()
    before = net.whole_state_dict()["conv1.bias"].clone()
    found = train(net, images(FASHION).train, make_optimizer(net.parameters(), "sgd"), batch_size=4, seed=0, steps=3)
    for record in islice(found, 2):
        assert net.training
        assert net.moment.step == record.step
        now = net.whole_state_dict()["conv1.bias"]
        assert not torch.equal(now, before)
        before = now.clone()
        net.eval()  # as whoever tests between two steps leaves it


def test_whoever_stops_iterating_stops_the_training():
    net, optimizer = lenet()
    found = train(net, images(net.architecture).train, optimizer, batch_size=4, seed=0, steps=10**9)
    next(found)
    state = net.whole_state_dict()
    found.close()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.whole_state_dict().items())


# The same numbers


def test_the_same_seed_is_the_same_training_bit_for_bit():
    first, weights = losses(devices=["cpu", "cpu"], steps=6)
    again, same = losses(devices=["cpu", "cpu"], steps=6)
    assert first == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_another_seed_is_another_training():
    assert losses(steps=2)[0] != losses(steps=2, seed=1)[0]


@pytest.mark.parametrize(
    ("name", "devices"),
    quick(
        product(["fashion", "alexnet"], ["cpu,cpu", "fake:0,fake:1"]),
        *(("fashion", "fake:0,fake:1"), ("alexnet", "cpu,cpu")),
    ),
)
def test_losses_of_towers_are_the_whole_networks(name, devices):
    table, devices = small(name), devices.split(",")
    found, _ = losses(table, devices)
    whole, _ = losses(table, devices[:1])
    assert len(found) == 20
    assert max(abs(a - b) for a, b in zip(found, whole, strict=True)) < 1e-4


@pytest.mark.parametrize(
    ("name", "optimizer"),
    quick(product(["fashion", "alexnet"], ["sgd", "adam"]), ("fashion", "adam"), ("alexnet", "sgd")),
)
def test_weights_after_steps_are_the_whole_networks_in_float64(name, optimizer):
    table = small(name)
    options = {"optimizer": optimizer, "lr": 0.01 if optimizer == "sgd" else 1e-4, "steps": 5, "dtype": torch.float64}
    found, weights = losses(table, ["fake:0", "fake:1"], **options)
    whole, whole_weights = losses(table, ["fake:0"], **options)
    assert max(abs(a - b) / b for a, b in zip(found, whole, strict=True)) < 1e-12
    # Adam divides by the gradient's own size: where that is near 0, rounding is all there is
    tolerance = 1e-12 if optimizer == "sgd" else 1e-9
    for parameter, tensor in whole_weights.items():
        assert relative(weights[parameter], tensor) < tolerance, parameter


def test_fake_devices_train_as_the_plain_cpu_bit_for_bit():
    found, weights = losses(devices=["fake:0", "fake:1"], steps=3, optimizer="adam")
    plain, plain_weights = losses(devices=["cpu", "cpu"], steps=3, optimizer="adam")
    assert found == plain
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)


@pytest.mark.slow
def test_the_loss_falls():
    table = FASHION.adapted(classes=2)
    found, _ = losses(table, ["cpu", "cpu"], steps=60, batch_size=12, optimizer="adam", lr=3e-3)
    assert sum(found[-5:]) < 0.5 * sum(found[:5])


# Not finite


def spoil(net, value):
    with torch.no_grad():
        net.hosted[0][net.architecture.layers[-1].name].bias.fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_its_step(value):
    net = build(FASHION, devices=["cpu", "cpu"])
    found = train(net, images(FASHION).train, make_optimizer(net.parameters(), "sgd"), batch_size=4, seed=0, steps=9)
    records = list(islice(found, 2))
    spoil(net, value)
    with pytest.raises(DivergedError, match=r"^step 2: the loss is nan; a smaller --lr may help$"):
        next(found)
    assert [r.step for r in records] == [0, 1]
    assert next(found, None) is None


def test_too_large_a_learning_rate_diverges():
    net, _ = lenet()
    optimizer = make_optimizer(net.parameters(), "sgd", 1e38)
    records = []
    with pytest.raises(DivergedError, match=r"^step \d+: the loss is (nan|inf)"):
        records.extend(train(net, images(net.architecture).train, optimizer, batch_size=8, seed=0, steps=50))


# Evaluation


def test_evaluation_is_the_mean_over_all_images_without_dropout():
    net = build(FASHION, devices=["cpu", "cpu"]).double()
    split = images(FASHION, test=10).test
    found = evaluate(net, split, batch_size=4, step=7, epoch=2)  # 4, 4 and 2: a mean of means would be another
    assert (found.step, found.epoch, found.images) == (7, 2, 10)
    net.eval()
    with torch.no_grad():
        logits = net(network_images(net, split.images))
    mean = torch.nn.functional.cross_entropy(logits, split.labels).item()
    assert found.loss == pytest.approx(mean, rel=1e-12)
    assert found.accuracy == (logits.argmax(1) == split.labels).double().mean().item()
    net.moment = Moment(seed=5, step=9)
    assert evaluate(net, split, batch_size=4).loss == found.loss


def test_evaluation_changes_nothing():
    net, optimizer = lenet()
    split = images(net.architecture)
    list(train(net, split.train, optimizer, batch_size=4, seed=0, steps=1))
    before = net.whole_state_dict()
    gradients = [p.grad.clone() for p in net.parameters()]
    evaluate(net, split.test, batch_size=4)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.whole_state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))


def test_testing_between_steps_does_not_change_the_training():
    def trained(tested):
        net = build(FASHION, devices=["cpu", "cpu"])
        data, found = images(FASHION), []
        for record in train(net, data.train, make_optimizer(net.parameters(), "sgd"), batch_size=4, seed=0, steps=4):
            found.append(record.loss)
            if tested:
                evaluate(net, data.test, batch_size=5)
        return found

    assert trained(True) == trained(False)


@pytest.mark.parametrize(("asked", "seen"), [(None, 10), (3, 3), (4, 4), (100, 10)])
def test_evaluation_of_the_first_images(asked, seen):
    net, _ = lenet()
    split = images(net.architecture, test=10).test
    found = evaluate(net, split, batch_size=4, images=asked)
    assert found.images == seen
    first = evaluate(net, HeldSplit(split.images[:seen], split.labels[:seen]), batch_size=4)
    assert (found.loss, found.accuracy) == (first.loss, first.accuracy)


# What travels


def test_images_travel_once_to_each_device_and_one_outcome_comes_back():
    net = build(FASHION, devices=PAIR)
    optimizer = make_optimizer(net.parameters(), "sgd")
    split = images(FASHION, 12).train
    fake.clear_copies()
    list(train(net, split, optimizer, batch_size=4, seed=0, steps=3))
    copies = fake.copies()
    pixels, labels, outcome = 4 * FASHION.channels * SIDE * SIDE, 4 * 8, 2 * 4  # uint8, int64, two float32
    down = {(c.target, c.bytes): n for c, n in copies.items() if c.source == "cpu"}
    assert down == {("fake:0", pixels): 3, ("fake:1", pixels): 3, ("fake:0", labels): 3}
    assert {(c.source, c.bytes): n for c, n in copies.items() if c.target == "cpu"} == {("fake:0", outcome): 3}
    between = sum(c.bytes * n for c, n in copies.items() if "cpu" not in (c.source, c.target))
    assert between == 3 * FASHION.bytes_exchanged(4) == net.ledger.bytes()


def test_towers_on_one_device_share_one_copy_of_the_images():
    net = build(FASHION, devices=["fake:0", "fake:0"])
    fake.clear_copies()
    batch = images(FASHION, 4).train.read(torch.arange(4))
    one, two = network_images(net, batch.images)
    assert one is two
    assert one.shape == (4, FASHION.channels, FASHION.size, FASHION.size)
    [(copy, times)] = fake.copies().items()
    assert (copy.source, copy.target, copy.bytes, times) == ("cpu", "fake:0", batch.images.numel(), 1)


def test_images_are_resized_on_their_devices_to_the_weights_type():
    net = build(FASHION, devices=PAIR).double()
    found = network_images(net, images(FASHION, 4).train.images)
    assert [(str(x.device), x.dtype) for x in found] == [(device, torch.float64) for device in PAIR]
    assert min(x.min().item() for x in found) >= 0
    assert max(x.max().item() for x in found) <= 1


# Broken images


@pytest.fixture
def broken_folder(tmp_path):
    """Six images of two classes, of which the files at places 1, 2 and 3 are broken."""
    names = [f"{name}/{i}.png" for name in "ab" for i in range(3)]
    for place, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 30), (40 * place, 9, 9)).save(tmp_path / name)
        if place in {1, 2, 3}:
            (tmp_path / name).write_bytes(b"\x89PNG no more")
    return FolderSplit(tmp_path, names, torch.tensor([0, 0, 0, 1, 1, 1]), 32, Pool(1), {})


def test_broken_images_shrink_a_batch(broken_folder):
    table = small("lenet", 1).adapted(channels=3, classes=2)
    net = build(table, devices=["cpu"])
    optimizer = make_optimizer(net.parameters(), "sgd")
    records = list(train(net, broken_folder, optimizer, batch_size=2, seed=0, epochs=2))
    assert sum(r.images for r in records) == 2 * 3
    assert all(1 <= r.images <= 2 for r in records)
    assert [r.epoch for r in records if r.ends_epoch] == [0, 1]
    assert records[-1].ends_epoch
    assert [r.step for r in records] == list(range(len(records)))
    assert len(broken_folder.skipped) == 3


def test_broken_images_are_not_counted_in_a_test(broken_folder):
    table = small("lenet", 1).adapted(channels=3, classes=2)
    net = build(table, devices=["cpu"]).double()
    found = evaluate(net, broken_folder, batch_size=2)  # 0, -, -, -, 4, 5: one whole batch is gone
    assert found.images == 3
    alone = broken_folder.read(torch.tensor([0, 4, 5]))
    assert found.loss == pytest.approx(evaluate(net, HeldSplit(alone.images, alone.labels), batch_size=3).loss)


# Optimizers


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_fused_optimizers_are_torchs_to_rounding(name):
    net = build(small("fashion"), devices=["cpu", "cpu"]).double()
    plain = build(small("fashion"), devices=["cpu", "cpu"]).double()
    batch = images(FASHION, 4).train.read(torch.arange(4))
    ours = make_optimizer(net.parameters(), name)
    theirs = {
        "adam": lambda p: torch.optim.Adam(p, lr=1e-3, fused=False, foreach=False),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, fused=False, foreach=False),
    }[name](plain.parameters())
    for step in range(3):
        for each, optimizer in ((net, ours), (plain, theirs)):
            each.moment = replace(each.moment, step=step)
            training_step(each, optimizer, batch)
    weights = plain.whole_state_dict()
    for parameter, tensor in net.whole_state_dict().items():
        assert relative(tensor, weights[parameter]) < 1e-10, parameter


def test_a_learning_rate_replaces_the_default():
    net, _ = lenet()
    assert make_optimizer(net.parameters(), "adam", 0.25).defaults["lr"] == 0.25
    assert make_optimizer(net.parameters(), "adam").defaults["lr"] == 1e-3
    assert (
        make_optimizer(net.parameters(), "sgd").defaults | {"lr": 1e-2, "momentum": 0.9}
        == make_optimizer(net.parameters(), "sgd").defaults
    )


def test_a_step_leaves_no_gradient_of_the_one_before():
    net, optimizer = lenet()
    batch = images(net.architecture, 4).train.read(torch.arange(4))
    training_step(net, optimizer, batch)
    first = [p.grad for p in net.parameters()]
    training_step(net, optimizer, batch)
    assert all(now is not before for now, before in zip([p.grad for p in net.parameters()], first, strict=True))


class Unreadable:
    """Images of which none can be read any more."""

    def __len__(self):
        return 6

    def read(self, indices):
        return Batch(torch.empty(0, 1, 28, 28, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), indices[:0])


def test_a_training_on_nothing_ends():
    """And does not look for an image in one epoch after another."""
    net, optimizer = lenet()
    with pytest.raises(UsageError, match="epoch 0: none of the 6 training images can be read"):
        list(train(net, Unreadable(), optimizer, batch_size=4, seed=0, steps=3))


def test_a_training_that_goes_on_at_the_end_of_an_epoch_goes_on_with_the_next():
    """Behind its last slice the resumed epoch has nothing to read, which is no fault."""
    net, optimizer = lenet()
    split = images(net.architecture, 8).train
    records = list(train(net, split, optimizer, batch_size=4, seed=0, steps=3, start=Position(2, 0, 2)))
    assert [(r.step, r.epoch) for r in records] == [(2, 1)]
