"""Nothing but the crossings communicates, and it is known where anything else does."""

import pytest
import torch
import torch.nn.functional as F
from layouts import batch, small

from splitnet.parallel import fake
from splitnet.parallel.audit import UnknownCopyError, audit
from splitnet.parallel.placement import host, place


def trained(devices=("fake:0", "fake:1"), meddle=None):
    """A network of which one step has been made, and one test without gradients."""
    table = small("alexnet")
    placement = place(table, list(devices))
    net = host(table, placement, seed=0)
    fake.clear_copies()
    images, labels = batch(table, 4)
    loss = F.cross_entropy(net(images.float()), labels.to(placement.devices[0]))
    if meddle is not None:
        loss = loss + meddle(net)
    loss.backward()
    with torch.no_grad():
        net(images.float())
    return table, placement, net


def hold(table, placement, net):
    return audit(table, placement, net.ledger.transfers(), forward=8, backward=4)


def test_a_step_and_a_test_are_all_in_the_table():
    table, placement, net = trained()
    found = hold(table, placement, net)
    assert found.bytes == 4 * table.bytes_exchanged(1) + 4 * table.bytes_exchanged(1, "forward")
    assert found.copies == 7 + 7 + 7  # conv3, fc6, fc7 both ways and fc8 one way; backward; and in the test
    assert found.host_copies == 2 * 2 + 1  # images to each device, twice, and the labels
    assert "to the byte" in str(found)


@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("fake:0", "fake:0")], ids="-".join)
def test_towers_that_share_a_device_exchange_without_copies(devices):
    found = hold(*trained(devices))
    assert found.copies in {None, 0}
    assert found.bytes > 0


def test_a_copy_outside_the_crossings_is_named_by_file_and_line():
    def meddle(net):
        return 0 * net.hosted[1]["conv4"].bias.sum().to("fake:0")

    with pytest.raises(UnknownCopyError, match=r"test_parallel_audit\.py:\d+ copies 4 bytes from fake:1 to fake:0"):
        hold(*trained(meddle=meddle))


def test_its_way_back_is_named_by_the_line_of_its_way_there():
    def meddle(net):
        return 0 * net.hosted[1]["conv4"].bias.sum().to("fake:0")

    trained(meddle=meddle)
    back = [c for c in fake.copies() if c.file == __file__ and c.phase == "backward" and c.source == "fake:0"]
    there = [c for c in fake.copies() if c.file == __file__ and c.phase == "forward" and c.source == "fake:1"]
    assert [c.line for c in back] == [c.line for c in there]
    assert len(back) == 1


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
