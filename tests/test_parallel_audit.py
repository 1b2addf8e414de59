"""Nothing but the crossings communicates, and it is known where anything else does."""

import pytest
import torch
from layouts import small

from splitnet.parallel import fake
from splitnet.parallel.audit import DETOUR, UnknownCopyError, audit
from splitnet.parallel.exchange import LocalExchange
from splitnet.parallel.placement import host, place
from splitnet.training.data import load
from splitnet.training.loop import evaluate, training_step
from splitnet.training.optimizer import make_optimizer


def trained(devices=("fake:0", "fake:1"), meddle=None, link="device"):
    """A network of which one step has been made, and one test."""
    table = small("alexnet")
    placement = place(table, list(devices))
    fake.clear_copies()
    net = host(table, placement, seed=0)
    net.exchange = LocalExchange(placement.devices, link=link)
    if meddle is not None:
        meddle(net)
    data = load("synthetic", size=table.size, train=4, test=4)
    optimizer = make_optimizer(net.parameters(), "sgd")
    training_step(net, optimizer, data.train.read(torch.arange(4)))
    evaluate(net, data.test, batch_size=4)
    return table, placement, net


def listening(row, what):
    """A meddler that sees what a row of tower 1 makes, and says what becomes of it."""

    def meddle(net):
        net.hosted[1][row].register_forward_hook(lambda _, __, output: output + what(output).to(output.device))

    return meddle


def hold(table, placement, net, link="device"):
    return audit(table, placement, net.ledger.transfers(), forward=8, backward=4, link=link)


def test_a_step_and_a_test_are_all_in_the_table():
    table, placement, net = trained()
    found = hold(table, placement, net)
    assert found.bytes == 4 * table.bytes_exchanged(1) + 4 * table.bytes_exchanged(1, "forward")
    assert found.copies == 7 + 7 + 7  # conv3, fc6, fc7 both ways and fc8 one way; backward; and in the test
    held = 2 * 8 + 2 * 7  # weights and biases of each tower, placed
    assert found.host_copies == held + 2 * (2 + 1) + 1  # images to each device and labels, twice; the test's outcome
    assert "to the byte" in str(found)


@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("fake:0", "fake:0")], ids="-".join)
def test_towers_that_share_a_device_exchange_without_copies(devices):
    found = hold(*trained(devices))
    assert found.copies in {None, 0}
    assert ("nothing was copied between devices" in str(found)) == (found.copies == 0)
    assert found.bytes > 0


def test_a_copy_outside_the_crossings_is_named_by_file_and_line():
    meddle = listening("conv4", lambda output: 0 * output.sum().to("fake:0"))
    with pytest.raises(UnknownCopyError, match=r"test_parallel_audit\.py:\d+ copies 4 bytes from fake:1 to fake:0"):
        hold(*trained(meddle=meddle))


def test_its_way_back_is_named_by_the_line_of_its_way_there():
    trained(meddle=listening("conv4", lambda output: 0 * output.sum().to("fake:0")))
    back = [c for c in fake.copies() if c.file == __file__ and c.phase == "backward" and c.source == "fake:0"]
    there = [c for c in fake.copies() if c.file == __file__ and c.phase == "forward" and c.source == "fake:1"]
    assert [c.line for c in back] == [c.line for c in there]
    assert len(back) == 1


@pytest.mark.parametrize(
    "leak",
    [
        lambda output: 0 * output.cpu().to("fake:1").sum(),  # an activation by way of the host
        lambda output: output.detach().mean().item() * torch.zeros((), device="fake:1"),  # a number that is read
    ],
    ids=["activation", "number"],
)
def test_what_goes_through_the_host_is_named_too(leak):
    with pytest.raises(UnknownCopyError, match=r"test_parallel_audit\.py:\d+ copies .* neither images, labels"):
        hold(*trained(meddle=listening("conv1", leak)))


def test_a_crossing_that_the_table_does_not_have_is_named():
    table, placement, net = trained()
    with pytest.raises(UnknownCopyError, match=r"conv3, forward, tower . to tower .: .* the table says 0"):
        hold(table.crossing(["fc6", "fc7"]), placement, net)


def test_a_step_too_few_is_noticed():
    table, placement, net = trained()
    with pytest.raises(UnknownCopyError, match="the table says"):
        audit(table, placement, net.ledger.transfers(), forward=12, backward=8)


def test_copies_that_the_ledger_does_not_have_are_noticed():
    table, placement, net = trained()
    net.exchange.ledger.clear()
    net.exchange.all_gather([torch.ones(1, 2, device=d) for d in placement.devices], "conv3")
    with pytest.raises(UnknownCopyError):
        hold(table, placement, net)


# By way of the host


def test_through_the_host_all_is_known_too_and_nothing_goes_straight():
    straight, around = hold(*trained()), hold(*trained(link="host"), link="host")
    assert around.bytes == straight.bytes
    assert around.copies == 0
    assert around.host_copies == straight.host_copies + 2 * straight.copies
    assert "all of them through the host" in str(around)


@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("fake:0", "fake:0")], ids="-".join)
def test_towers_that_share_a_device_do_not_go_through_the_host(devices):
    straight, around = hold(*trained(devices)), hold(*trained(devices, link="host"), link="host")
    assert around.host_copies == straight.host_copies


def test_a_straight_copy_is_named_where_all_should_go_through_the_host():
    meddle = listening("conv4", lambda output: 0 * output.sum().to("fake:0"))
    with pytest.raises(UnknownCopyError, match=r"test_parallel_audit\.py:\d+ copies 4 bytes from fake:1 to fake:0"):
        hold(*trained(meddle=meddle, link="host"), link="host")
    with pytest.raises(UnknownCopyError, match=r"exchange\.py:\d+ copies .* and not through the host"):
        hold(*trained(), link="host")


def test_a_detour_is_named_where_all_should_go_straight():
    with pytest.raises(UnknownCopyError, match=r"exchange\.py:\d+ copies .* from fake:. to cpu"):
        hold(*trained(link="host"))


@pytest.mark.parametrize("way", ["to", "from"])
def test_what_else_goes_through_the_host_is_named_too(way):
    def leak(output):
        return 0 * output.cpu().to("fake:1").sum() if way == "to" else 0 * torch.ones(3).to("fake:1").sum()

    with pytest.raises(UnknownCopyError, match=r"test_parallel_audit\.py:\d+ copies .* neither images, labels"):
        hold(*trained(meddle=listening("conv1", leak), link="host"), link="host")


def test_a_detour_that_the_ledger_does_not_have_is_noticed():
    table, placement, net = trained(link="host")
    before = net.ledger.transfers()
    net.exchange.all_gather([torch.ones(1, 2, device=d) for d in placement.devices], "conv3")
    with pytest.raises(UnknownCopyError, match="is not what the ledger says"):
        audit(table, placement, before, forward=8, backward=4, link="host")


def test_a_detour_backward_that_the_ledger_does_not_have_is_noticed():
    table, placement, net = trained(link="host")
    before = net.ledger.transfers()
    xs = [torch.ones(1, 2, device=d, requires_grad=True) for d in placement.devices]
    gathered = net.exchange.gather(xs, "fc8")
    fake.clear_copies()
    gathered.sum().backward()
    assert {c.phase for c in fake.copies()} == {"backward"}
    assert all(c.line in DETOUR for c in fake.copies())
    with pytest.raises(UnknownCopyError, match="is not what the ledger says"):
        audit(table, placement, before, forward=8, backward=4, link="host")
