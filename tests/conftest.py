"""What every test starts from: a seed, one thread, and a reason where it cannot run."""

import gc
import os

import pytest
from hypothesis import settings

# Examples come from the test's own name and its time is not judged: the same on a fast and on a busy machine.
settings.register_profile("splitnet", derandomize=True, deadline=None)
settings.load_profile("splitnet")

LONG = {
    *("test_verify", "test_training_augment", "test_training_loop", "test_convert", "test_prepare", "test_looking"),
    *("test_measure_lanes", "test_network_response_norm"),
}
"""Files whose quick tests take longest: none of them is to be left over at the end."""

GPUS_NEEDED = {"gpu": 1, "two_gpus": 2}


def gpus_needed(item: pytest.Item) -> int:
    return max((count for mark, count in GPUS_NEEDED.items() if item.get_closest_marker(mark)), default=0)


def why_no_gpus(count: int) -> str:
    """Why a test of that many CUDA devices cannot run in this process; "" if it can."""
    if not count:
        return ""
    import torch

    found = torch.cuda.device_count()
    if found < count:
        return f"needs {count} CUDA device{'s' if count > 1 else ''}, found {found}"
    if hasattr(torch, "fake"):  # put there by splitnet.fake.install
        return "fake devices are installed in this process: run `pytest -m 'gpu or two_gpus'`"
    return ""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many as cores. One more where tests start processes: who waits for them leaves its core to others."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if "not slow" in config.getoption("markexpr") else cores + 1


def pytest_collectstart() -> None:
    """PyTorch is imported where tests are, and not by a process that has others run them."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is here by now stays: the collector need not look at PyTorch's own again, each time."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests last, so that in a mixed run they skip by rule and not by the alphabet; files that take long first."""
    items.sort(
        key=lambda item: (gpus_needed(item), not item.get_closest_marker("ranks"), not _slow(item), not _long(item))
    )


def _long(item: pytest.Item) -> bool:
    return item.path.stem in LONG


def _slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if why := why_no_gpus(gpus_needed(item)):
        pytest.skip(why)


@pytest.fixture(autouse=True)
def seed() -> None:
    import torch

    torch.manual_seed(0)
