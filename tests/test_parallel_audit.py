"""Nothing but the crossings communicates, and it is known where anything else does."""

import pytest
import torch
from layouts import small

from splitnet.parallel import fake
from splitnet.parallel.audit import UnknownCopyError, audit
from splitnet.parallel.placement import host, place
from splitnet.training.data import load
from splitnet.training.loop import evaluate, training_step
from splitnet.training.optimizer import make_optimizer


def trained(devices=("fake:0", "fake:1"), meddle=None):
    """A network of which one step has been made, and one test."""
    table = small("alexnet")
    placement = place(table, list(devices))
    fake.clear_copies()
    net = host(table, placement, seed=0)
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


def hold(table, placement, net):
    return audit(table, placement, net.ledger.transfers(), forward=8, backward=4)


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
