"""Somebody else's model, split over two fake devices by hand, trains to the CPU's weights bit for bit."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from splitnet.testing import FakeDevices, fake_devices  # noqa: F401

Devices = tuple[torch.device, torch.device]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost small operations more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class SplitResNet(nn.Module):
    """The first half of a ResNet-18 on one device and the second on another."""

    def __init__(self, devices: Devices, *, forgetful: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        net = resnet18(num_classes=10)
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.first = nn.Sequential(stem, net.layer1, net.layer2).to(devices[0])
        self.second = nn.Sequential(net.layer3, net.layer4, net.avgpool, nn.Flatten(), net.fc).to(devices[1])
        self.home = devices[0] if forgetful else devices[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images).to(self.home))


def _train(devices: Devices, steps: int = 3) -> tuple[list[float], list[Tensor]]:
    """The losses, and the state that they lead to, on the CPU."""
    net = SplitResNet(devices)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(2, 3, 32, 32, generator=generator).to(devices[0])
        labels = torch.randint(10, (2,), generator=generator).to(devices[1])
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [value.cpu() for value in net.state_dict().values()]


def test_it_trains_as_on_the_cpu(fake_devices: FakeDevices) -> None:  # noqa: F811
    one, two = fake_devices
    host = torch.device("cpu")
    expected_losses, expected = _train((host, host))
    losses, state = _train((one, two))
    assert losses == expected_losses
    assert all(map(torch.equal, state, expected))
    activation = 2 * 128 * 4 * 4 * 4
    assert fake_devices.bytes_copied(one, two) == fake_devices.bytes_copied(two, one) == 3 * activation


def test_a_forgotten_copy_names_the_layer(fake_devices: FakeDevices) -> None:  # noqa: F811
    one, two = fake_devices
    with pytest.raises(RuntimeError, match=r"same device.*convolution in second\.0\.0\.conv1 \(Conv2d\)"):
        SplitResNet((one, two), forgetful=True)(torch.randn(2, 3, 32, 32, device=one))
