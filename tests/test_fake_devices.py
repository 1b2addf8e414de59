"""Fake devices work wherever PyTorch takes a device, and what they cannot do they refuse."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from splitnet.parallel import fake
from splitnet.parallel.fake import backend
from splitnet.testing import FakeDevices, fake_devices  # noqa: F401

ONE, TWO = "fake:0", "fake:1"

pytestmark = pytest.mark.usefixtures("fake_devices")


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def _run(code: str) -> None:
    """In a process of its own, without fake devices."""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# Where they are


@pytest.mark.slow
def test_importing_does_nothing_and_installing_again_adds_what_is_missing() -> None:
    _run(
        "import torch; from splitnet.parallel import fake\n"
        "assert fake.installed() == 0 and not hasattr(torch, 'fake')\n"
        "fake.install(1); fake.install(3); fake.install(2)\n"
        "assert fake.installed() == torch.fake.device_count() == 3\n"
        "assert torch.ones(2, device='fake:2').sum() == 2"
    )


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="not 0"):
        fake.install(0)


@pytest.mark.slow
def test_another_backend_in_the_place_is_named() -> None:
    code = (
        "import torch; torch.utils.rename_privateuse1_backend('other'); from splitnet.parallel import fake\n"
        "try: fake.install()\nexcept RuntimeError as error: assert 'taken by' in str(error)\nelse: assert False"
    )
    _run(code)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: torch.zeros(2, device=d),
        lambda d: torch.tensor([1.0, 2.0], device=d),
        lambda d: torch.as_tensor([1.0, 2.0], device=d),
        lambda d: torch.as_tensor(np.ones(2), device=d),
        lambda d: torch.arange(3, device=d),
        lambda d: torch.eye(2, device=d),
        lambda d: torch.linspace(0, 1, 3, device=d),
        lambda d: torch.full((2,), 3, device=d),
        lambda d: torch.tril_indices(3, 3, device=d),
        lambda d: torch.hann_window(4, device=d),
        lambda d: torch.empty(2, 2, device=d).fill_(1),
        lambda d: torch.empty_strided((2, 2), (1, 2), device=d).fill_(1),
        lambda d: torch.zeros(2).to(d),
        lambda d: torch.zeros(2).to(torch.zeros(3, device=d)),
        lambda d: torch.zeros(2).type_as(torch.zeros(3, device=d)),
        lambda d: torch.zeros_like(torch.zeros(2), device=d),
        lambda d: torch.zeros(2, device=ONE).to(d),
        lambda d: torch.zeros_like(torch.ones(2, device=ONE), device=d),
        lambda d: torch.ones(2, device=ONE).new_zeros(3, device=d),
        lambda d: torch.ones(2, device=d).new_tensor([1, 2]),
        lambda d: torch.tensor(list(torch.ones(2, device=ONE)), device=d),
        lambda d: nn.Linear(2, 2, device=d).weight,
        lambda d: nn.Linear(2, 2).to(d).weight,
        lambda d: next(_network().to(d).parameters()),
    ],
)
@pytest.mark.parametrize("device", [ONE, TWO, "device object", "fake"])
def test_device_strings_work(make: Callable[[Any], Tensor], device: Any) -> None:
    device = torch.device(TWO) if device == "device object" else device
    tensor = make(device)
    assert tensor.device == torch.device(ONE if device == "fake" else device)
    assert tensor.get_device() == tensor.device.index
    assert (tensor.is_cpu, tensor.is_meta, tensor.is_cuda) == (False, False, False)
    assert isinstance(tensor.tolist(), list)


def test_a_device_can_be_the_default() -> None:
    with torch.device(TWO):
        assert str(torch.ones(2).device) == TWO


@pytest.mark.parametrize(
    "use",
    [
        lambda d: torch.zeros(2, device=d),
        lambda d: torch.zeros(2).to(d),
        lambda d: torch.zeros(2, device=ONE).to(d),
        lambda d: torch.tensor([1.0], device=d),
        lambda d: nn.Linear(2, 2).to(d),
        lambda d: torch.ones_like(torch.ones(2, device=ONE), device=d),
        lambda d: torch.fake.memory_allocated(d),
        lambda d: fake.clock(d),
    ],
)
def test_a_device_that_does_not_exist_is_refused(use: Callable[[str], object]) -> None:
    with pytest.raises(RuntimeError, match=r"invalid device ordinal \(fake:7"):
        use("fake:7")


def test_moving_to_where_it_is_changes_nothing() -> None:
    x = torch.ones(2, device=ONE)
    assert all(x.to(same) is x for same in (ONE, "fake", 0, torch.device(ONE), torch.float32, x))
    assert x.to(ONE, copy=True) is not x
    assert fake.copies().total() == 0


# Modules, optimizers, copies of them


@pytest.mark.parametrize("where", [TWO, "cpu"])
def test_a_module_that_moves_keeps_its_parameters(where: str) -> None:
    net = nn.Linear(2, 2)
    weight, values = net.weight, net.weight.detach().clone()
    net.to(ONE)(torch.ones(1, 2, device=ONE)).sum().backward()
    assert net.weight is weight
    net.to(where)
    assert net.weight is weight
    assert isinstance(weight, nn.Parameter)
    assert weight.grad is not None
    assert str(weight.device) == str(weight.grad.device) == where
    assert torch.equal(weight.cpu(), values)
    assert torch.equal(weight.grad.cpu(), torch.ones(2, 2))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "momentum foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
}


def _train(net: nn.Module, make: Callable[[Any], torch.optim.Optimizer], device: str) -> list[Tensor]:
    optimizer = make(net.parameters())
    images = torch.linspace(-1, 1, 3 * 2 * 4 * 4).reshape(3, 2, 4, 4).to(device)
    for _ in range(3):
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()
    return [value.detach().cpu() for value in net.state_dict().values()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_take_the_cpu_s_steps(name: str) -> None:
    net = _network()
    there = copy.deepcopy(net).to(ONE)
    expected = _train(net, OPTIMIZERS[name], "cpu")
    actual = _train(there, OPTIMIZERS[name], ONE)
    if "foreach" in name and "adam" in name:  # foreach divides where the other loop multiplies by the inverse
        torch.testing.assert_close(actual, expected)
    else:
        assert all(map(torch.equal, actual, expected))


def test_an_optimizer_s_state_is_loaded_on_another_device() -> None:
    net = _network().to(ONE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net.eval()(torch.ones(1, 2, 4, 4, device=ONE)).sum().backward()
    optimizer.step()
    other = torch.optim.SGD(copy.deepcopy(net).to(TWO).parameters(), lr=0.1, momentum=0.9)
    other.load_state_dict(optimizer.state_dict())
    assert {str(state["momentum_buffer"].device) for state in other.state.values()} == {TWO}


def test_deepcopy_of_a_module() -> None:
    net = _network().to(ONE)
    net[0].weight.tower = 7
    twin = copy.deepcopy(net)
    assert [p.device for p in twin.parameters()] == [p.device for p in net.parameters()]
    assert twin[0].weight.tower == 7
    assert isinstance(twin[0].weight, nn.Parameter)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert net[0].weight.abs().sum().item() > 0


def test_deepcopy_of_tensors_keeps_strides_gradients_and_sharing() -> None:
    base = torch.arange(12.0, device=ONE)
    x = torch.ones(2, requires_grad=True, device=TWO)
    x.sum().backward()
    base2, view, x2 = copy.deepcopy([base, base.view(3, 4).t(), x])
    view[0, 0] = 100
    assert base2[0].item() == 100
    assert base[0].item() == 0
    assert view.stride() == (1, 4)
    assert x2.requires_grad
    assert x2.grad.tolist() == [1, 1]
    assert copy.deepcopy(x.detach() * 2).tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(x * 2)


def test_a_shallow_copy_shares_memory() -> None:
    x = nn.Parameter(torch.ones(2, device=ONE))
    twin = copy.copy(x)
    twin.detach().zero_()
    assert isinstance(twin, nn.Parameter)
    assert x.tolist() == [0, 0]


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.5)], ids=["mean", "ema"])
def test_averaged_models(average: Any) -> None:
    results = []
    for device in ("cpu", ONE):
        net = nn.Linear(2, 1, bias=False).to(device)
        averaged = AveragedModel(net, multi_avg_fn=average)
        for value in (1.0, 2.0, 4.0):
            nn.init.constant_(net.weight, value)
            averaged.update_parameters(net)
        results.append(averaged.module.weight.detach().cpu())
    assert torch.equal(*results)


def test_channels_last() -> None:
    net = nn.Conv2d(2, 3, 3).to(ONE).to(memory_format=torch.channels_last)
    assert net.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(1, 2, 5, 5, device=ONE).contiguous(memory_format=torch.channels_last)
    assert net(images).is_contiguous(memory_format=torch.channels_last)
    assert images.to(TWO).is_contiguous(memory_format=torch.channels_last)
    assert images.to(TWO, memory_format=torch.contiguous_format).is_contiguous()


# Saving and loading


def _saved(x: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=True, **options)


def test_saved_tensors_come_back_where_they_were_or_where_they_are_asked_for() -> None:
    x = torch.randn(4, 3, device=TWO).t()
    for options, device in (({}, TWO), ({"map_location": "cpu"}, "cpu"), ({"map_location": ONE}, ONE)):
        loaded = _saved({"x": x}, **options)["x"]
        assert str(loaded.device) == device
        assert loaded.stride() == x.stride()
        assert torch.equal(loaded.cpu(), x.cpu())


def test_saved_host_tensors_are_loaded_onto_a_device() -> None:
    base = torch.arange(6.0)
    loaded, view = _saved([base, base[2:4]], map_location=torch.device(TWO))
    assert str(loaded.device) == TWO
    view.zero_()
    assert loaded.tolist() == [0, 1, 0, 0, 4, 5]  # they share a storage, as on the host
    assert [c.source for c in fake.copies() if c.bytes == 24 and c.target == TWO] == ["cpu"]
    assert str(_saved(base, map_location={"cpu": ONE}).device) == ONE


def test_state_is_loaded_across_devices() -> None:
    there = _network().to(ONE)
    host = _network()
    host.load_state_dict(_saved(there.state_dict(), map_location="cpu"))
    other = _network().to(TWO)
    other.load_state_dict(there.state_dict())
    for net in (host, other):
        assert all(torch.equal(value.cpu(), there.state_dict()[name].cpu()) for name, value in net.state_dict().items())
    assert {str(p.device) for p in other.parameters()} == {TWO}


def test_parameters_are_saved_and_pickled() -> None:
    parameter = nn.Parameter(torch.ones(2, device=ONE))
    for loaded in (_saved(parameter), pickle.loads(pickle.dumps(parameter))):
        assert isinstance(loaded, nn.Parameter)
        assert str(loaded.device) == ONE
        assert loaded.requires_grad


# Tensors that change what they are


def test_data_can_be_replaced() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2, device=ONE))
    parameter.data = torch.ones(3, 2, device=ONE)
    assert parameter.shape == (3, 2)
    (parameter * 2).sum().backward()
    assert parameter.grad.tolist() == [[2, 2]] * 3
    parameter.grad = None
    parameter.data = torch.full((2,), 5.0, device=TWO)
    assert str(parameter.device) == TWO
    assert (parameter + 0).tolist() == [5, 5]


def test_data_shares_memory_but_not_shape() -> None:
    x, y = torch.zeros(2, 3, device=ONE), torch.zeros(6, device=ONE)
    x.data = y
    y.add_(1)
    x.unsqueeze_(0)
    assert x.tolist() == [[1] * 6]
    assert y.shape == (6,)
    x.data.mul_(2)
    assert y.tolist() == [2] * 6


def test_data_becomes_channels_last() -> None:
    x = torch.arange(16.0, device=ONE).reshape(1, 2, 2, 4)
    values = x.tolist()
    x.data = x.contiguous(memory_format=torch.channels_last)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.tolist() == values
    assert (x + 0).stride() == x.stride()


def test_data_of_another_kind_of_device() -> None:
    x = torch.zeros(2, device=ONE)
    x.data = torch.ones(2)
    assert str(x.device) == "cpu"
    assert type(x) is Tensor
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        torch.zeros(2).data = torch.ones(2, device=ONE)


def test_set_and_resize() -> None:
    x, y = torch.zeros(2, device=ONE), torch.ones(3, device=ONE)
    x.set_(y)
    y.mul_(4)
    assert x.tolist() == [4, 4, 4]
    x.set_(y.untyped_storage(), 1, (2,), (1,))
    assert x.tolist() == [4, 4]
    y.resize_(5).fill_(2)
    assert y.sum().item() == 10
    assert y[2:].shape == (3,)
    x.set_()
    assert x.numel() == 0


@pytest.mark.parametrize("storage", [lambda: torch.ones(4).untyped_storage(), lambda: _storage(TWO)])
def test_set_takes_no_storage_of_another_device(storage: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(2, device=ONE).set_(storage(), 0, (2,), (1,))


def test_a_host_tensor_takes_no_storage_of_a_device() -> None:
    with pytest.raises(RuntimeError, match="out of bounds for storage of size 0"):
        torch.zeros(2).set_(_storage(ONE), 0, (2,), (1,))
    with pytest.raises(RuntimeError, match="different device"):
        torch.zeros(2).set_(_storage(ONE))


def _storage(device: str) -> torch.UntypedStorage:
    return torch.ones(4, device=device).untyped_storage()


def test_storages_tell_but_do_not_hand_out() -> None:
    x = torch.ones(4, device=TWO)
    storage = x.untyped_storage()
    assert storage.nbytes() == len(storage) == 16
    assert str(storage.device) == TWO
    assert storage.data_ptr() == x.data_ptr() == x.view(2, 2).untyped_storage().data_ptr()
    assert x[1:].data_ptr() == x.data_ptr() + 4
    for change in (lambda: storage.resize_(0), lambda: storage[0], lambda: storage.copy_(storage), storage.tolist):
        with pytest.raises(NotImplementedError, match="through tensors only"):
            change()


def test_storages_are_not_made_alone() -> None:
    for make in (
        lambda: torch.UntypedStorage(4, device=ONE),
        lambda: torch.ones(2).untyped_storage().to(device=torch.device(ONE)),
    ):
        with pytest.raises(NotImplementedError, match="make a tensor"):
            make()
    assert torch.UntypedStorage(4, device="cpu").nbytes() == torch.UntypedStorage(4).nbytes() == 4


def test_in_place_changes_of_shape() -> None:
    x = torch.arange(6.0, device=ONE).reshape(2, 3)
    assert x.t_().shape == (3, 2)
    assert x.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert x.unsqueeze_(0).squeeze_(0).transpose_(0, 1).stride() == (3, 1)
    assert x.as_strided_((2,), (1,)).tolist() == [0, 1]
    y = torch.ones(2, requires_grad=True, device=ONE) * 2
    assert y.detach_().requires_grad is False


def test_results_take_the_shape_that_they_need() -> None:
    result = torch.empty(0, device=ONE)
    torch.matmul(torch.ones(2, 3, device=ONE), torch.ones(3, 4, device=ONE), out=result)
    assert result.shape == (2, 4)
    assert (result + 1).tolist() == [[4] * 4] * 2


def test_parameters_as_a_vector() -> None:
    net = nn.Linear(2, 2).to(ONE)
    vector = nn.utils.parameters_to_vector(net.parameters())
    nn.utils.vector_to_parameters(torch.arange(6.0, device=ONE), net.parameters())
    assert vector.shape == (6,)
    assert net(torch.ones(1, 2, device=ONE)).tolist() == [[5, 10]]


def test_copies_between_dtypes_and_shapes() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, device=ONE)
    x.copy_(torch.tensor([1, 2, 3], device=TWO), non_blocking=True)
    x[0] = torch.tensor([7.0, 8.0, 9.0])
    host = torch.empty(2, 3, dtype=torch.int32)
    host.copy_(x)
    assert host.tolist() == [[7, 8, 9], [1, 2, 3]]


def test_looking_at_tensors() -> None:
    x = torch.tensor([1.5, 2.0], device=TWO)
    fake.clear_copies()
    assert repr(x) == "tensor([1.5000, 2.0000], device='fake:1')"
    assert repr(x.requires_grad_()) == "tensor([1.5000, 2.0000], device='fake:1', requires_grad=True)"
    assert repr(x * 1) == "tensor([1.5000, 2.0000], device='fake:1', grad_fn=<MulBackward0>)"
    assert repr(nn.Parameter(x)).startswith("Parameter containing:\ntensor([1.5000, 2.0000], device='fake:1'")
    assert fake.copies().total() == 0
    x = x.detach()
    assert f"{x[0]:.2f} {float(x[1])} {bool(x[0] > 1)} {1.5 in x}" == "1.50 2.0 True True"


# What is refused


@pytest.mark.parametrize(
    "read", [lambda x: x.numpy(), np.asarray, np.array, np.from_dlpack, lambda x: np.asarray(x, float)]
)
def test_numpy_is_refused_as_on_a_gpu(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(TypeError, match=r"can't convert fake:0 device type tensor to numpy\. Use Tensor\.cpu\(\)"):
        read(torch.ones(2, device=ONE))
    assert torch.ones(2, device=ONE).numpy(force=True).tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2, device=ONE).to_sparse(),
        lambda: torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), [1.0], device=ONE),
        lambda: torch.empty(2, 2, layout=torch.sparse_csr, device=ONE),
        lambda: nn.Embedding(3, 2, sparse=True, device=ONE)(torch.tensor([1], device=ONE)).sum().backward(),
    ],
)
def test_sparse_tensors_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(NotImplementedError, match=r"dense tensors only|SparseCsrfake"):
        make()


def test_generators_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="PrivateUse1"):
        torch.Generator(ONE)
    for draw in (
        lambda: torch.randn(2, generator=torch.Generator(), device=ONE),
        lambda: torch.randperm(2, generator=torch.Generator(), device=ONE),
        lambda: torch.empty(2, device=ONE).normal_(generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match="Expected a 'fake' device type for generator but found 'cpu'"):
            draw()


@pytest.mark.filterwarnings("ignore")
def test_compiling_is_refused() -> None:
    for compiled in (torch.compile(lambda x: x * 2, backend="eager"), torch.compile(nn.Linear(2, 2).to(ONE))):
        with pytest.raises(RuntimeError, match=r"torch\.compile cannot trace them"):
            compiled(torch.ones(2, device=ONE))


def test_autocast_says_that_it_stays_off() -> None:
    with pytest.warns(UserWarning, match="Disabling autocast"):
        torch.autocast("fake", dtype=torch.bfloat16)


def test_pinning_does_nothing_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_warned", [])
    loader = DataLoader(TensorDataset(torch.arange(4.0)), batch_size=2, pin_memory=True)
    with pytest.warns(UserWarning, match="no pinned memory"):
        batches = list(loader)
    assert [batch.tolist() for (batch,) in batches] == [[0, 1], [2, 3]]
    assert len(list(loader)) == 2  # a second warning would be an error


def test_only_host_tensors_can_be_pinned() -> None:
    for pin in (lambda: torch.ones(2, device=ONE).pin_memory(), lambda: torch.ones(2, device=ONE, pin_memory=True)):
        with pytest.raises(RuntimeError, match="Only dense CPU tensors can be pinned"):
            pin()


def test_batches_of_a_loader() -> None:
    loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=2)
    assert [batch.to(ONE, non_blocking=True).sum().item() for (batch,) in loader] == [1, 5, 9]


# The fixture


def test_the_fixture_tells_what_happened(fake_devices: FakeDevices) -> None:  # noqa: F811
    one, two = fake_devices
    torch.ones(4, device=one).to(two)
    assert fake_devices.bytes_copied(one, two) == fake_devices.copies().popitem()[0].bytes == 16
    assert fake_devices.bytes_copied(two, one) == 0
    assert fake_devices.memory_peak(one) >= 16
    fake_devices.clear_copies()
    assert not fake_devices.copies()
