"""The collectives' exchange, as far as one process shows it; tests/test_ranks_training.py has the rest."""

import pytest
import torch

from splitnet.parallel.collective import LostRankError, carried


def test_a_collective_that_breaks_off_is_named():
    with (
        pytest.raises(LostRankError, match="all_gather of conv3: Connection closed by peer"),
        carried("all_gather of conv3"),
    ):
        raise RuntimeError("Connection closed by peer")


def test_a_device_that_is_full_is_not_another_rank():
    with pytest.raises(torch.OutOfMemoryError), carried("all_gather of conv3"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_is_under_way_is_told_before_it_begins():
    told = []
    with carried("gather of fc8", told.append):
        assert told == ["gather of fc8"]
