"""Foreign weights become the same function: every number's place, and logits beside the other program's own order."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from foreign_weights import as_caffe_blobs, caffe_npy, cuda_convnet, module_state, narrow

from splitnet.errors import UsageError
from splitnet.network import foreign
from splitnet.network.foreign import LAYOUTS, Source, layout_of
from splitnet.parallel.placement import build

LIMIT = 1e-4


def tensors(layers):
    return {
        f"{name} {what}": torch.from_numpy(part)
        for name, parts in layers.items()
        for what, part in zip(("weights", "biases"), parts, strict=True)
    }


def matrices(checkpoint):
    found = {}
    for name, layer in checkpoint["model_state"]["layers"].items():
        found |= {f"{name} weights[{i}]": torch.tensor(w) for i, w in enumerate(layer.get("weights", ()))}
        found |= {f"{name} biases": torch.tensor(layer["biases"])} if "biases" in layer else {}
    return found


def keeps(checkpoint):
    layers = checkpoint["model_state"]["layers"]
    return {name: layer["keep"] for name, layer in layers.items() if layer["type"] == "hs"}


CAFFE, ALEXNET, FASHION = narrow("caffe", 2), narrow("alexnet", 2), narrow("fashion", 1)
FC6_SIDE = CAFFE.rows()[5].side
SOURCES = {
    "caffe-npy": (CAFFE, lambda: Source("caffe-npy", tensors(caffe_npy(CAFFE)))),
    "caffemodel": (CAFFE, lambda: Source("caffemodel", tensors(as_caffe_blobs(caffe_npy(CAFFE), FC6_SIDE)))),
    "textbook": (FASHION, lambda: Source("textbook", module_state("textbook", FASHION))),
    "cuda-convnet": (
        ALEXNET,
        lambda: Source("cuda-convnet", matrices(cuda_convnet(ALEXNET)), keeps=keeps(cuda_convnet(ALEXNET))),
    ),
}


def pixels(table):
    found = torch.rand(3, table.channels, table.size, table.size)
    return found if table.pixels == "0..1" else 255 * found - 128


def logits(table, state, images, devices=("cpu",)):
    net = build(table, devices=devices).eval()
    net.load_whole_state_dict(state)
    with torch.no_grad():
        return net(images)


def difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def compared(layout, meddle=lambda state: None):
    """How far the network with the imported weights is from the other program, in largest logits."""
    table, make = SOURCES[layout]
    source, images = make(), pixels(table)
    state = LAYOUTS[layout].whole(table, source)
    meddle(state)
    return difference(logits(table, state, images), LAYOUTS[layout].logits(source, images))


@pytest.mark.parametrize("layout", SOURCES)
def test_the_network_computes_what_the_other_program_computes(layout):
    assert compared(layout) < 1e-5


def test_towers_compute_what_the_code_of_2012_computes():
    table, make = SOURCES["cuda-convnet"]
    source, images = make(), pixels(table)
    state = LAYOUTS["cuda-convnet"].whole(table, source)
    assert difference(logits(table, state, images, ("cpu", "cpu")), foreign.cuda_convnet_logits(source, images)) < 1e-5


def test_both_orders_of_caffe_give_one_state_and_one_function():
    """Two evaluations that share no line but the flip of the channels."""
    sources = [SOURCES[layout][1]() for layout in ("caffe-npy", "caffemodel")]
    images = pixels(CAFFE)
    npy, blobs = (LAYOUTS[source.layout].whole(CAFFE, source) for source in sources)
    assert all(torch.equal(npy[name], blobs[name]) for name in npy)
    npy, blobs = (LAYOUTS[source.layout].logits(source, images) for source in sources)
    assert difference(npy, blobs) < 1e-5


# What each step of an import is worth: without it the function is another.


def in_bgr(state):
    state["conv1.weight"] = state["conv1.weight"].flip(1)


def places_first(state):
    weight = state["fc6.weight"]
    state["fc6.weight"] = weight.unflatten(1, (-1, FC6_SIDE**2)).transpose(1, 2).flatten(1)


def columns_last(state):
    weight = state["fc6.weight"]
    state["fc6.weight"] = weight.unflatten(1, (-1, FC6_SIDE, FC6_SIDE)).transpose(2, 3).flatten(1)


def fc7_of_b_in_the_files_order(state):
    a, b = state["fc7.weight"].chunk(2)
    state["fc7.weight"] = torch.cat([a, b.roll(b.shape[1] // 2, 1)])


def not_halved(state):
    state["fc8.weight"] = 2 * state["fc8.weight"]


def transposed_kernels(state):
    state["conv2.weight"] = state["conv2.weight"].transpose(2, 3)


def towers_swapped_in_conv3(state):
    state["conv3.weight"] = state["conv3.weight"].roll(state["conv3.weight"].shape[1] // 2, 1)


@pytest.mark.parametrize(
    ("layout", "mistake"),
    [
        *(("caffe-npy", mistake) for mistake in (in_bgr, places_first, columns_last, transposed_kernels)),
        *(("caffemodel", mistake) for mistake in (in_bgr, places_first, columns_last, transposed_kernels)),
        ("textbook", transposed_kernels),
        ("cuda-convnet", fc7_of_b_in_the_files_order),
        ("cuda-convnet", not_halved),
        ("cuda-convnet", transposed_kernels),
        ("cuda-convnet", towers_swapped_in_conv3),
    ],
)
def test_a_step_left_out_is_another_function(layout, mistake):
    assert compared(layout, mistake) > 10 * LIMIT


def test_an_import_that_forgets_the_swapped_block_is_another_function(monkeypatch):
    monkeypatch.setattr(foreign, "_OWN_FIRST", ())
    assert compared("cuda-convnet") > 10 * LIMIT


# Single numbers, by the layouts' own words.


def test_places_in_caffes_npy():
    layers = caffe_npy(CAFFE)
    state = LAYOUTS["caffe-npy"].whole(CAFFE, Source("caffe-npy", tensors(layers)))
    red = 0
    assert state["conv1.weight"][5, red, 7, 3] == layers["conv1"][0][7, 3, 2 - red, 5]
    assert state["conv2.weight"][31, 4, 1, 3] == layers["conv2"][0][1, 3, 4, 31]
    units, channels = state["fc6.weight"], CAFFE.rows()[5].channels
    row, column, channel = 1, 0, 7
    place = (row * FC6_SIDE + column) * channels + channel
    assert units[9, channel * FC6_SIDE**2 + row * FC6_SIDE + column] == layers["fc6"][0][place, 9]
    assert state["fc8.weight"][3, 11] == layers["fc8"][0][11, 3]
    assert state["fc7.bias"].tolist() == layers["fc7"][1].tolist()
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in state.values())


def test_places_in_the_checkpoint_of_2012():
    checkpoint = cuda_convnet(ALEXNET, hs="dropout")
    layers = checkpoint["model_state"]["layers"]
    state = LAYOUTS["cuda-convnet"].whole(ALEXNET, Source("cuda-convnet", matrices(checkpoint)))
    half = state["fc7.weight"].shape[1] // 2
    outs = len(layers["fc2048bb"]["biases"][0])
    a_of_b = layers["fc2048bb"]["weights"][1]  # its inputs are (hs1b, hs1a)
    assert torch.equal(state["fc7.weight"][outs:, :half], torch.tensor(a_of_b.T.copy()))
    b_of_a = layers["fc2048ba"]["weights"][1]  # (hs1a, hs1b)
    assert torch.equal(state["fc7.weight"][:outs, half:], torch.tensor(b_of_a.T.copy()))
    kernels, channels = layers["conv1b"]["weights"][0], 3
    first_of_b = len(state["conv1.weight"]) // 2
    assert state["conv1.weight"][first_of_b + 2, 1, 4, 9] == kernels[1 * 121 + 4 * 11 + 9, 2]
    assert kernels.shape[0] == channels * 11 * 11
    assert torch.equal(state["conv4.bias"][-1], torch.tensor(layers["conv4b"]["biases"][-1, 0]))


@pytest.mark.parametrize("scales", ["training", "testing"])
@pytest.mark.parametrize("hs", ["hs", "dropout", None])
def test_what_hs_halves_in_tests_is_in_the_weights_that_read_it_unless_the_network_halves_it(hs, scales):
    checkpoint = cuda_convnet(ALEXNET, hs)
    table = replace(ALEXNET, dropout_scales=scales)
    source = Source("cuda-convnet", matrices(checkpoint), keeps=keeps(checkpoint))
    state = LAYOUTS["cuda-convnet"].whole(table, source)
    plain = LAYOUTS["cuda-convnet"].whole(ALEXNET, Source("cuda-convnet", matrices(checkpoint)))
    factor = (0.5 if hs == "hs" else 1.0) * (2 if scales == "testing" else 1)
    assert foreign.scales_in_tests(table, source) == (hs == "hs")
    assert not foreign.scales_in_tests(table, replace(source, keeps=source.keeps | {"hs1a": 0.25}))
    for name, tensor in state.items():
        assert torch.equal(tensor, plain[name] * (factor if name in ("fc7.weight", "fc8.weight") else 1)), name


def test_legacy_shapes_of_caffe_are_the_same_numbers():
    blobs = tensors(as_caffe_blobs(caffe_npy(CAFFE), FC6_SIDE))
    old = {name: blob.reshape((1,) * (4 - blob.dim()) + tuple(blob.shape)) for name, blob in blobs.items()}
    states = [LAYOUTS["caffemodel"].whole(CAFFE, Source("caffemodel", found)) for found in (blobs, old)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    images = pixels(CAFFE)
    new, legacy = (foreign.caffemodel_logits(Source("caffemodel", found), images) for found in (blobs, old))
    assert torch.equal(new, legacy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read_as_float32(dtype):
    source = SOURCES["textbook"][1]()
    source = replace(source, tensors={name: tensor.to(dtype) for name, tensor in source.tensors.items()})
    state = LAYOUTS["textbook"].whole(FASHION, source)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    images = pixels(FASHION)
    assert difference(logits(FASHION, state, images), LAYOUTS["textbook"].logits(source, images)) < 1e-5


@pytest.mark.parametrize("layout", SOURCES)
def test_as_many_classes_as_the_file_has(layout):
    table, make = SOURCES[layout]
    assert LAYOUTS[layout].table(make(), table.adapted(classes=1000)).classes == 10


# What does not fit


@pytest.mark.parametrize("layout", SOURCES)
def test_each_tensor_that_is_missing_or_of_another_shape_is_named(layout):
    table, make = SOURCES[layout]
    source = make()
    for name, tensor in source.tensors.items():
        rest = {other: t for other, t in source.tensors.items() if other != name}
        with pytest.raises(UsageError) as refusal:
            LAYOUTS[layout].whole(table, replace(source, tensors=rest))
        assert str(refusal.value).startswith(f"{name} is missing; (")
        wider = torch.cat([tensor, tensor], dim=tensor.dim() - 1)
        with pytest.raises(UsageError) as refusal:
            LAYOUTS[layout].whole(table, replace(source, tensors=rest | {name: wider}))
        assert str(refusal.value).startswith(f"{name} is {tuple(wider.shape)}, not (")


@pytest.mark.parametrize("layout", SOURCES)
def test_a_tensor_without_a_place_is_named(layout):
    table, make = SOURCES[layout]
    source = make()
    with pytest.raises(UsageError, match=r"'conv9.weight', \(2, 2\), has no place in it"):
        LAYOUTS[layout].whole(table, replace(source, tensors={**source.tensors, "conv9.weight": torch.ones(2, 2)}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_refused(value):
    source = SOURCES["textbook"][1]()
    source.tensors["fc.3.weight"][2, 1] = value
    with pytest.raises(UsageError, match=r"^fc.3.weight has values that are not finite$"):
        LAYOUTS["textbook"].whole(FASHION, source)


@pytest.mark.parametrize("other", [torch.int32, torch.complex64, torch.bool])
def test_what_is_no_float_is_refused(other):
    source = SOURCES["textbook"][1]()
    found = {**source.tensors, "conv.0.bias": source.tensors["conv.0.bias"].to(other)}
    with pytest.raises(UsageError, match=r"^conv.0.bias is torch\.\w+; floats are expected$"):
        LAYOUTS["textbook"].whole(FASHION, replace(source, tensors=found))


@pytest.mark.parametrize(
    ("layer", "inputs", "line"),
    [
        ("fc2048bb", ("hs1a", "hs1b"), "fc2048bb reads 'hs1a', 'hs1b', not towers b, a"),
        ("fc2048ba", ("hs1b", "hs1a"), "fc2048ba reads 'hs1b', 'hs1a', not towers a, b"),
        ("conv2a", ("pool1b_neuron",), "conv2a reads 'pool1b_neuron', not towers a"),
        ("conv3b", ("pool2b",), "conv3b reads 'pool2b', not towers a, b"),
        ("fc1000", ("hs2a", "elsewhere"), "fc1000 reads 'hs2a', 'elsewhere', not towers a, b"),
    ],
)
def test_inputs_in_another_order_than_in_2012_are_refused(layer, inputs, line):
    source = SOURCES["cuda-convnet"][1]()
    with pytest.raises(UsageError) as refusal:
        LAYOUTS["cuda-convnet"].whole(ALEXNET, replace(source, inputs={layer: inputs}))
    assert str(refusal.value) == line


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["features.0.weight"], "torchvision"),
        (["classifier.6.bias"], "torchvision"),
        (["conv.0.weight", "fc.0.weight"], "textbook"),
        (["conv1.weight"], "splitnet"),
        (["something"], "splitnet"),
    ],
)
def test_whose_names_they_are(names, layout):
    assert layout_of(dict.fromkeys(names)) == layout


@pytest.mark.slow
def test_torchvisions_module_at_full_width():
    from torchvision.models import alexnet

    module = alexnet(num_classes=7).eval()
    table = LAYOUTS["torchvision"].table(Source("torchvision", module.state_dict()), foreign_table("torchvision"))
    source = Source("torchvision", module.state_dict())
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = module(images)
    assert table.classes == 7
    found = logits(table, LAYOUTS["torchvision"].whole(table, source), images)
    assert difference(found, expected) < 1e-5
    with torch.no_grad():
        assert torch.equal(LAYOUTS["torchvision"].logits(source, images), expected)


def foreign_table(name):
    from splitnet.network.presets import preset

    return preset(name, LAYOUTS[name].towers)
