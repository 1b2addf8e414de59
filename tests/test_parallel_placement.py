"""Which devices, and why."""

import pytest
import torch
from layouts import small

from splitnet.errors import UsageError
from splitnet.network.presets import preset
from splitnet.parallel.placement import build, check_processes, place


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that PyTorch counts so many GPUs: enough to choose by, not to compute on."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("towers", "count", "devices", "reason"),
    [
        (2, 0, ["fake:0", "fake:1"], "no GPU found: 2 fake devices"),
        (2, 1, ["cuda:0", "cuda:0"], "1 GPU found for 2 towers: all share the first"),
        (2, 2, ["cuda:0", "cuda:1"], "2 GPUs found, one for each tower"),
        (2, 8, ["cuda:0", "cuda:1"], "8 GPUs found"),
        (4, 2, ["cuda:0"] * 4, "2 GPUs found for 4 towers"),
        (4, 0, ["fake:0", "fake:1", "fake:2", "fake:3"], "4 fake devices"),
        (1, 0, ["cpu"], "one tower"),
        (1, 2, ["cuda:0"], "one tower"),
    ],
)
def test_the_best_devices_there_are(gpus, towers, count, devices, reason):
    gpus(count)
    placement = place(preset("fashion", towers))
    assert [str(device) for device in placement.devices] == devices
    assert reason in placement.reason
    assert "\n" not in placement.reason


def test_caffe_is_placed_whole_because_of_its_norms(gpus):
    gpus(0)
    placement = place(preset("caffe", 2))
    assert placement.whole
    assert "norms read every tower" in placement.reason


@pytest.mark.parametrize(
    ("name", "towers", "devices", "message"),
    [
        ("fashion", 2, "cuda:0,cuda:1", r"--devices cuda:0: no such device \(there is none of this kind\)"),
        ("fashion", 2, "fake:0,fake:7", r"--devices fake:7: no such device \(fake:0, fake:1.*\)"),
        ("fashion", 2, "cpu,cpu:1", r"--devices cpu:1: there is one CPU"),
        ("fashion", 2, "cpu,cpu,cpu", r"--devices cpu,cpu,cpu: 3 devices for --towers 2; name 2, or one"),
        ("fashion", 1, "cpu,cpu", r"--devices cpu,cpu: 2 devices for --towers 1; name one"),
        ("fashion", 2, "gpu,gpu", r"--devices gpu: no such kind of device"),
        ("fashion", 2, "fake:x,cpu", r"--devices fake:x: no such kind of device"),
        ("fashion", 2, "cpu,", r"--devices : no such kind of device"),
        ("fashion", 2, "meta,meta", r"--devices meta: does not compute"),
        ("caffe", 2, "cpu,cpu", r"--devices cpu,cpu: caffe's norms read both towers, so it takes one device"),
    ],
)
def test_devices_that_cannot_be_had_are_refused_in_one_line(gpus, name, towers, devices, message):
    gpus(0)
    with pytest.raises(UsageError, match=message) as refusal:
        place(preset(name, towers), devices.split(","))
    assert "\n" not in str(refusal.value)


def test_repeats_and_mixtures_are_allowed():
    assert str(place(preset("fashion", 2), ["fake:0", "fake:0"])) == "fake:0, fake:0"
    assert str(place(preset("fashion", 2), ["cpu", "fake:1"])) == "cpu, fake:1"
    assert str(place(preset("fashion", 2), ["fake", torch.device("cpu")])) == "fake:0, cpu"


def test_each_tower_lives_on_its_device_in_channels_last():
    net = build(small("alexnet"), devices=["fake:0", "fake:1"])
    for tower, device in zip(net.hosted, ("fake:0", "fake:1"), strict=True):
        assert {str(p.device) for p in tower.parameters()} == {device}
        assert tower["conv2"].weight.is_contiguous(memory_format=torch.channels_last)


def test_build_takes_a_name_or_a_table():
    net = build("lenet", towers=1, devices=["cpu"], classes=7, channels=3)
    assert net(torch.zeros(2, 3, 28, 28)).shape == (2, 7)
    assert build(small("alexnet"), towers=4, devices=["cpu"]).architecture.towers == 4
    assert build("fashion", devices=["cpu"], crosses="none").architecture.bytes_exchanged(1, "forward") == 8_192


def test_logits_are_on_tower_0s_device_wherever_images_are():
    net = build(small("fashion"), devices=["fake:1", "fake:0"])
    assert str(net(torch.zeros(2, 1, 96, 96)).device) == "fake:1"
    assert str(net(torch.zeros(2, 1, 96, 96, device="fake:0")).device) == "fake:1"


def test_a_forgotten_copy_is_reported_with_the_layers_name():
    net = build(small("fashion"), devices=["fake:0", "fake:1"])
    # tower 1 is handed what lies on tower 0's device
    net.exchange.all_gather = lambda xs, row: [net.exchange.gather(xs, row)] * 2
    with pytest.raises(RuntimeError, match=r"(?s)same device.*towers\.1\.conv3"):
        net(torch.zeros(2, 1, 96, 96))


def test_build_beside_somebody_elses_process_group_is_refused(monkeypatch):
    """Torch would say that a default group is initialised twice."""
    from splitnet.parallel import ranks

    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match="a process group is there already"):
        build("fashion")
    assert build(small("fashion"), devices=["cpu"]).hosted  # named devices are this process's own


@pytest.mark.parametrize(
    ("world", "devices", "said"),
    [
        (3, None, "--towers 2: 3 processes are not a multiple of it"),
        (2, "cpu,cpu", "--devices cpu,cpu: under torchrun each process has its own device"),
    ],
)
def test_what_the_processes_of_a_job_cannot_do_is_refused(monkeypatch, world, devices, said):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(UsageError, match=said):
        check_processes(small("fashion"), devices)
