"""`splitnet.convert`: every layout in, both formats out, each verified; what is wrong is one line and no file."""

import json
import pickle
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from foreign_weights import (
    as_caffe_blobs,
    caffe_npy,
    cuda_convnet,
    module_state,
    narrow,
    write_caffemodel,
    write_npy,
)
from layouts import small
from quick import few
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from whole_runs import made

from splitnet import convert, onnx_graph, weight_files
from splitnet.errors import UsageError
from splitnet.network import foreign, weights
from splitnet.network.foreign import Source
from splitnet.network.presets import PRESETS, preset
from splitnet.network.weights import draw
from splitnet.parallel.placement import build
from splitnet.training.checkpoint import Checkpoint, Checkpoints

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

LIMIT = 1e-4


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def line(self):
        """The only one on stderr, without its beginning."""
        assert re.fullmatch(r"splitnet: error: [^\n]+\n", self.err), self.err
        return self.err.removeprefix("splitnet: error: ")[:-1]


@pytest.fixture
def full(capsys):
    """Runs the command."""
    threads = torch.get_num_threads()

    def run(*words):
        code = convert.main(list(map(str, words)))
        return Said(code, *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def command(full, monkeypatch):
    """Runs it on presets an eighth as wide."""
    monkeypatch.setattr(convert, "preset", narrow)
    return full


def names(folder):
    return sorted(path.name for path in folder.iterdir())


CAFFE, ALEXNET, FASHION = narrow("caffe", 2), narrow("alexnet", 2), narrow("fashion", 1)


def written(layout, folder, table=None):
    """A file of random weights in a layout."""
    path = folder / {"caffemodel": "x.caffemodel", "caffe-npy": "x.npy"}.get(layout, "12.34")
    if layout == "caffe-npy":
        return write_npy(path, caffe_npy(table or CAFFE))
    if layout == "caffemodel":
        table = table or CAFFE
        return write_caffemodel(path, as_caffe_blobs(caffe_npy(table), table.rows()[5].side))
    if layout == "cuda-convnet":
        path.write_bytes(pickle.dumps(cuda_convnet(table or ALEXNET), 2))
    else:
        torch.save(module_state(layout, table or FASHION), path)
    return path


LAYOUTS = {"caffe-npy": "caffe", "caffemodel": "caffe", "textbook": "fashion", "cuda-convnet": "alexnet"}


# In and out


@pytest.mark.parametrize("ending", ["safetensors", "onnx"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_converted_and_verified(command, tmp_path, layout, ending):
    source, out = written(layout, tmp_path), tmp_path / f"out.{ending}"
    said = command(source, out)
    assert (said.code, said.err) == (0, "")
    assert names(tmp_path) == sorted([source.name, out.name])
    table = LAYOUTS[layout]
    checks = [line for line in said.out.splitlines() if "of the largest logit (at most 1e-04)" in line]
    assert any(f"{table} on cpu, and {foreign.LAYOUTS[layout].what}: differ by" in line for line in checks)
    assert all(float(line.split("differ by ")[1].split()[0]) <= LIMIT for line in checks)
    assert ("onnxruntime, and" in said.out) == (ending == "onnx")
    assert ("onnxruntime, and 2 towers on cpu: differ" in said.out) == (ending == "onnx" and table == "alexnet")
    assert ("weights read back: equal" in said.out) == (ending == "safetensors")
    assert ("reversed: Caffe reads BGR" in said.out) == (table == "caffe")
    assert f"Written: {out}" in said.out
    assert "\x1b" not in said.out


def test_what_safetensors_hold_is_read_by_everyone(command, tmp_path):
    """A whole state by our names, which `run --weights` takes, and what it is of beside it."""
    out = tmp_path / "out.safetensors"
    command(written("cuda-convnet", tmp_path), out)
    state = weights.read(out, replace(ALEXNET, dropout_scales="testing"))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == weights.shapes(ALEXNET)
    with safe_open(out, "pt") as file:
        said = json.loads(file.metadata()["splitnet"])
    assert said == {
        "preset": "alexnet",
        "towers": 2,
        "crosses": "conv3,fc6,fc7",
        "dropout_scales": "testing",
        "pixels": "minus-mean",
        "images": "3x96x96, RGB 0..255 minus mean",
    }
    again = command(out, tmp_path / "out.onnx")  # so it needs no --preset
    assert again.code == 0, again.err
    assert "alexnet, 2 towers" in again.out


def test_classes_go_with_the_weights(command, tmp_path):
    listed = [f"class {i}, größer" for i in range(10)]
    (tmp_path / "classes.txt").write_text("\n".join(listed), encoding="utf-8")
    source = written("textbook", tmp_path)
    assert command(source, tmp_path / "a.safetensors", "--classes", tmp_path / "classes.txt").code == 0
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert json.loads(file.metadata()["splitnet"])["classes"] == listed
    assert command(source, tmp_path / "b.onnx", "--classes", tmp_path / "classes.txt").code == 0
    assert command(tmp_path / "a.safetensors", tmp_path / "c.onnx").code == 0  # and stay with them
    for path in (tmp_path / "b.onnx", tmp_path / "c.onnx"):
        [entry] = onnx.load(path).metadata_props
        assert json.loads(entry.value)["classes"] == listed


def test_classes_that_replace_a_sources_own_are_said(command, tmp_path):
    metadata = {weight_files.METADATA: json.dumps({"preset": "fashion", "towers": 1, "classes": list("abcdefghij")})}
    save_file(draw(FASHION, 0), tmp_path / "a.safetensors", metadata)
    for listed, line in (("abdcefghij", "class 2 was 'c', is now 'd'."), ("abcdefghij", "")):
        (tmp_path / "classes.txt").write_text("\n".join(listed))
        said = command(tmp_path / "a.safetensors", tmp_path / f"{listed}.onnx", "--classes", tmp_path / "classes.txt")
        assert said.code == 0
        assert [s for s in said.out.splitlines() if "own names of" in s] == [
            f"--classes replaces its own names of classes: {line}"
        ] * bool(line)


def test_the_2012_codes_halving_is_said(command, tmp_path):
    said = command(written("cuda-convnet", tmp_path), tmp_path / "a.safetensors")
    assert "so do --dropout-scales testing, and --recipe 2012" in said.out
    source = pickle.loads(written("cuda-convnet", tmp_path).read_bytes())
    plain = source["model_state"]["layers"]["fc1000"]["weights"][0]
    state = weights.read(tmp_path / "a.safetensors", replace(ALEXNET, dropout_scales="testing"))
    assert torch.equal(state["fc8.weight"][:, : len(plain)], torch.tensor(plain).T)  # as it came: it trains on as there
    (tmp_path / "c").write_bytes(pickle.dumps(cuda_convnet(ALEXNET, keep=0.25), 2))
    said = command(tmp_path / "c", tmp_path / "c.safetensors")
    assert "fc7's and fc8's weights are multiplied by 0.25" in said.out
    (tmp_path / "b").write_bytes(pickle.dumps(cuda_convnet(ALEXNET, hs=None, inputs=False), 2))
    said = command(tmp_path / "b", tmp_path / "b.safetensors")
    assert said.code == 0
    assert "No hs layer is in it" in said.out


@pytest.mark.parametrize("opset", [13, 22])
def test_the_opset_asked_for_is_written(command, tmp_path, opset):
    assert command(written("textbook", tmp_path), tmp_path / "a.onnx", "--opset", opset).code == 0
    assert [entry.version for entry in onnx.load(tmp_path / "a.onnx").opset_import] == [opset]


# Caffe, beside a graph built here from the published list of layers.

DEPLOY = [
    ("Convolution", "conv1", {"num_output": 96, "kernel_size": 11, "stride": 4}),
    *[("ReLU", "relu1", {}), ("LRN", "norm1", {}), ("Pooling", "pool1", {})],
    ("Convolution", "conv2", {"num_output": 256, "pad": 2, "kernel_size": 5, "group": 2}),
    *[("ReLU", "relu2", {}), ("LRN", "norm2", {}), ("Pooling", "pool2", {})],
    *[("Convolution", "conv3", {"num_output": 384, "pad": 1, "kernel_size": 3}), ("ReLU", "relu3", {})],
    *[("Convolution", "conv4", {"num_output": 384, "pad": 1, "kernel_size": 3, "group": 2}), ("ReLU", "relu4", {})],
    *[("Convolution", "conv5", {"num_output": 256, "pad": 1, "kernel_size": 3, "group": 2}), ("ReLU", "relu5", {})],
    ("Pooling", "pool5", {}),
    *[("InnerProduct", "fc6", {"num_output": 4096}), ("ReLU", "relu6", {})],
    *[("InnerProduct", "fc7", {"num_output": 4096}), ("ReLU", "relu7", {})],
    ("InnerProduct", "fc8", {"num_output": 1000}),
]
"""github.com/BVLC/caffe, models/bvlc_alexnet: local_size 5, alpha 0.0001, beta 0.75, and k as it is by default, 1;
pooling is MAX, 3 wide, every 2; Dropout does nothing in tests."""


def bvlc_alexnet(path, blobs, side, width=1.0):
    """An ONNX graph of DEPLOY, a share as wide, that reads (N, 3, side, side), blue first."""
    make, nodes, x = onnx.helper.make_node, [], "data"
    for kind, name, settings in DEPLOY:
        if kind in ("Convolution", "InnerProduct"):
            wide = width if name != "fc8" else len(blobs[name][1]) / 1000
            assert len(blobs[name][1]) == settings["num_output"] * wide
        match kind:
            case "Convolution":
                sizes = {"kernel_shape": [settings["kernel_size"]] * 2, "pads": [settings.get("pad", 0)] * 4}
                strides = [settings.get("stride", 1)] * 2
                inputs = [x, f"{name}.w", f"{name}.b"]
                nodes.append(make("Conv", inputs, [name], strides=strides, group=settings.get("group", 1), **sizes))
            case "LRN":
                nodes.append(make("LRN", [x], [name], size=5, alpha=1e-4, beta=0.75, bias=1.0))
            case "Pooling":
                nodes.append(make("MaxPool", [x], [name], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1))
            case "ReLU":
                nodes.append(make("Relu", [x], [name]))
            case "InnerProduct":
                nodes.append(make("Flatten", [x], [f"{name}.x"]))
                nodes.append(make("Gemm", [f"{name}.x", f"{name}.w", f"{name}.b"], [name], transB=1))
        x = name
    constants = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(part), f"{name}.{what}")
        for name, pair in blobs.items()
        for what, part in zip("wb", pair, strict=True)
    ]
    data = onnx.helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, ["N", 3, side, side])
    out = onnx.helper.make_tensor_value_info("fc8", onnx.TensorProto.FLOAT, ["N", len(blobs["fc8"][1])])
    graph = onnx.helper.make_graph(nodes, "AlexNet", [data], [out], constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def by_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [entry] = session.get_inputs()
    return torch.tensor(session.run(None, {entry.name: images.numpy()})[0])


def difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def check_caffe(command, folder, table, layout, width):
    """The file in its own layout, evaluated by onnxruntime; and what was imported, as a network and as a graph."""
    layers = caffe_npy(table)
    blobs = as_caffe_blobs(layers, table.rows()[5].side)
    source = write_npy(folder / "x.npy", layers) if layout == "caffe-npy" else None
    source = source or write_caffemodel(folder / "x.caffemodel", blobs, old=layout == "old caffemodel")
    rgb = 255 * torch.rand(3, 3, table.size, table.size) - 128
    graph = bvlc_alexnet(folder / "theirs.onnx", blobs, table.size, width)
    expected = by_onnxruntime(graph, rgb.flip(1))
    del layers, blobs
    assert command(source, folder / "ours.safetensors").code == 0
    net = build(table, devices=["cpu"]).eval()
    net.load_whole_state_dict(load_file(folder / "ours.safetensors"))
    with torch.no_grad():
        assert difference(net(rgb), expected) < LIMIT
        assert difference(net(rgb.flip(1)), expected) > 10 * LIMIT  # so it matters which comes first
    assert command(source, folder / "ours.onnx").code == 0
    assert difference(by_onnxruntime(folder / "ours.onnx", rgb), expected) < LIMIT


@pytest.mark.parametrize("layout", ["caffe-npy", "caffemodel", "old caffemodel"])
def test_caffes_weights_compute_what_a_graph_of_bvlc_alexnet_computes(command, tmp_path, layout):
    check_caffe(command, tmp_path, CAFFE, layout, 1 / 8)


@pytest.mark.soak
@pytest.mark.parametrize("layout", ["caffe-npy", "caffemodel"])
def test_the_same_at_full_width(full, tmp_path, layout):
    check_caffe(full, tmp_path, preset("caffe"), layout, 1)


@pytest.mark.slow
@pytest.mark.parametrize("ending", few(["safetensors", "onnx"], "safetensors"))
def test_torchvisions_weights_at_full_width(full, tmp_path, ending):
    from torchvision.models import alexnet

    module = alexnet(num_classes=1000).eval()
    torch.save(module.state_dict(), tmp_path / "alexnet.pth")
    said = full(tmp_path / "alexnet.pth", tmp_path / f"out.{ending}")
    assert (said.code, said.err) == (0, "")
    if ending == "onnx":
        images = torch.rand(2, 3, 224, 224)
        with torch.no_grad():
            assert difference(by_onnxruntime(tmp_path / "out.onnx", images), module(images)) < LIMIT


@pytest.mark.soak
def test_a_checkpoint_of_2012_at_full_width(full, tmp_path):
    source = written("cuda-convnet", tmp_path, preset("alexnet", 2))
    said = full(source, tmp_path / "out.onnx")
    assert (said.code, said.err) == (0, "")
    assert "alexnet, 2 towers, 60,965,224 parameters" in said.out


# Ours


def saved(folder, table, settings):
    run = folder / "run"
    run.mkdir()
    group = [{"lr": 0.1}]
    Checkpoints(run).save(Checkpoint(7, 1, 2, settings, group, draw(table, 5), {}))
    return run


@pytest.mark.parametrize("given", ["run", "step", "weights"])
@pytest.mark.parametrize("ending", ["safetensors", "onnx"])
def test_a_checkpoint_is_of_the_network_that_its_run_had(command, tmp_path, given, ending):
    """Its recipe too: this one multiplies by a half in tests what it dropped half of."""
    table = narrow("alexnet-paper", 2, "fc6").adapted(classes=7)
    settings = {"preset": "alexnet-paper", "towers": 2, "crosses": "fc6", "dropout_scales": "testing"}
    run = saved(tmp_path, table, settings)
    step = run / "checkpoints" / "step-0000000007"
    source = {"run": run, "step": step, "weights": step / "weights.safetensors"}[given]
    said = command(source, tmp_path / f"out.{ending}")
    assert (said.code, said.err) == (0, "")
    assert "alexnet-paper, 2 towers" in said.out
    images = 255 * torch.rand(2, 3, table.size, table.size) - 128
    state = draw(table, 5)
    state["fc7.weight"], state["fc8.weight"] = state["fc7.weight"] / 2, state["fc8.weight"] / 2
    net = build(table, devices=["cpu"]).eval()
    net.load_whole_state_dict(state)
    with torch.no_grad():
        expected = net(images)
    path = tmp_path / f"out.{ending}"
    if ending == "safetensors":
        path = tmp_path / "again.onnx"
        assert command(tmp_path / "out.safetensors", path).code == 0
    assert difference(by_onnxruntime(path, images), expected) < LIMIT


def test_what_a_source_says_of_itself_is_not_overridden(command, tmp_path):
    """A preset of the same shapes is another function."""
    run = saved(tmp_path, ALEXNET, {"preset": "alexnet", "towers": 2, "crosses": None})
    file = tmp_path / "a.safetensors"
    assert command(run, file, "--preset", "alexnet", "--towers", "2").code == 0
    for source in (run, file):
        words = (source, tmp_path / "out.safetensors")
        says = f"as {re.escape(str(source))} says"
        bad(command, tmp_path, f"--preset caffe: these are alexnet's, {says}", *words, "--preset", "caffe")
        bad(command, tmp_path, rf"--towers 1: these are of 2 tower\(s\), {says}", *words, "--towers", "1")


def test_the_shapes_may_say_what_network_it_is(full, tmp_path):
    table = preset("lenet", 1).adapted(channels=3, classes=4)
    save_file(draw(table, 0), tmp_path / "a.safetensors")
    said = full(tmp_path / "a.safetensors", tmp_path / "a.onnx")
    assert (said.code, said.err) == (0, "")
    assert "lenet, 1 tower, " in said.out
    assert "does not say how it was trained" in said.out
    images = torch.rand(2, 3, 28, 28)
    net = build(table, devices=["cpu"], seed=0).eval()
    with torch.no_grad():
        assert difference(by_onnxruntime(tmp_path / "a.onnx", images), net(images)) < LIMIT


ALIKE = ("alexnet", "alexnet-paper", "alexnet-no-norm", "alexnet-plain-pool")


@pytest.mark.parametrize(
    ("name", "towers"), [(name, n) for name, table in PRESETS.items() for n in (1, 2, 4) if table.divides(n)]
)
def test_networks_of_the_same_shapes(name, towers):
    table = preset(name, towers)
    meta = {name: torch.empty(shape, device="meta") for name, shape in weights.shapes(table).items()}
    options = convert.ConvertOptions(source="a", out="b")
    same = (*ALIKE, *(("caffe",) if towers == 2 else ())) if name in (*ALIKE, "caffe") else (name,)
    if len(same) == 1:
        found = convert.network_of(Source("splitnet", meta), options)
        assert (found.name, found.towers) == (name, towers)
        return
    with pytest.raises(UsageError) as refusal:
        convert.network_of(Source("splitnet", meta), options)
    several = ", ".join(f"{other} with {towers}" for other in same)
    wanted = "say which, with --preset and --towers"
    assert str(refusal.value) == f"the shapes are those of {several} towers: {wanted}"
    found = convert.network_of(Source("splitnet", meta), replace(options, preset=name))
    assert (found.name, found.towers) == (name, towers)


def test_shapes_of_no_network_are_refused(full, tmp_path):
    source = tmp_path / "a.safetensors"
    save_file({"conv1.weight": torch.ones(2, 3)}, source)
    line = rf"{re.escape(str(source))}: the shapes are those of no preset: say which, with --preset and --towers"
    bad(full, tmp_path, line, source, tmp_path / "a.onnx")
    line = rf"{re.escape(str(source))}: conv1.weight is \(2, 3\), not \(96, 1, 11, 11\)"
    bad(full, tmp_path, line, source, tmp_path / "a.onnx", "--preset", "fashion", "--towers", "2")


def test_a_pytorch_file_by_our_names(command, tmp_path):
    torch.save(draw(FASHION, 0), tmp_path / "a.pt")
    assert command(tmp_path / "a.pt", tmp_path / "a.safetensors", "--preset", "fashion").code == 0
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in draw(FASHION, 0).items())


@pytest.mark.slow
@pytest.mark.parametrize(("pixels", "told"), [("0..1", "1x96x96, 0..1"), ("minus-mean", "1x96x96, 0..255 minus mean")])
def test_a_run_becomes_a_graph(full, monkeypatch, tmp_path, pixels, told):
    """That says what the run's network reads, and what its classes are called."""
    monkeypatch.setattr(convert, "preset", small)
    words = ("--data", "fashion-mnist-small", "--steps", "2", "--save-every", "2", "--batch-size", "4")
    run = made(tmp_path / "runs", *words, "--pixels", pixels)
    said = full(run, tmp_path / "out.onnx")
    assert (said.code, said.err) == (0, "")
    assert "fashion, 2 towers" in said.out
    assert ("minus the mean image" in said.out) == (pixels == "minus-mean")
    [entry] = onnx.load(tmp_path / "out.onnx").metadata_props
    found = json.loads(entry.value)
    assert (found["pixels"], found["images"]) == (pixels, told)
    assert found["classes"][0] == "T-shirt/top"
    weights_of = run / "checkpoints" / "step-0000000002" / "weights.safetensors"
    (tmp_path / "alone.safetensors").write_bytes(weights_of.read_bytes())
    assert full(tmp_path / "alone.safetensors", tmp_path / "again.safetensors", "--preset", "fashion").code == 0
    with safe_open(tmp_path / "again.safetensors", "pt") as file:
        assert json.loads(file.metadata()["splitnet"])["images"] == told


# A check that fails


def test_an_import_that_is_wrong_is_found_and_nothing_left(command, monkeypatch, tmp_path):
    source = tmp_path / "12.34"
    source.write_bytes(pickle.dumps(cuda_convnet(ALEXNET, inputs=False), 2))
    monkeypatch.setattr(foreign, "_OWN_FIRST", ())
    for ending in ("safetensors", "onnx"):
        said = command(source, tmp_path / f"out.{ending}")
        assert said.code == 1
        line = (
            r"/out\.\w+: not written: alexnet on cpu, and the code of 2012's layers-145: differ by \S+ of the largest"
        )
        assert re.match(re.escape(str(tmp_path)) + line, said.line)
        assert names(tmp_path) == [source.name]


def test_weights_that_were_not_written_are_found_and_nothing_left(command, monkeypatch, tmp_path):
    source, read_back = written("textbook", tmp_path), convert.read_back

    def damaged(path):
        state = read_back(path)
        state["fc7.bias"][3] += 1e-6
        return state

    monkeypatch.setattr(convert, "read_back", damaged)
    said = command(source, tmp_path / "out.safetensors")
    assert said.code == 1
    assert said.line == f"{tmp_path}/out.safetensors: not written: weights read back: NOT equal"
    assert names(tmp_path) == [source.name]


@pytest.mark.parametrize("mistake", ["seam", "nan"])
def test_a_graph_that_is_wrong_is_found_and_nothing_left(command, monkeypatch, tmp_path, mistake):
    source, encode = written("cuda-convnet", tmp_path), onnx_graph.encode

    def wrong(table, state, *rest):
        if mistake == "seam":
            return encode(table.without("cnorm"), state, *rest)
        return encode(table, {name: tensor * float("nan") for name, tensor in state.items()}, *rest)

    monkeypatch.setattr(onnx_graph, "encode", wrong)
    said = command(source, tmp_path / "out.onnx")
    assert said.code == 1
    assert "out.onnx: not written: onnxruntime, and alexnet on cpu: differ by" in said.line
    assert names(tmp_path) == [source.name]


def test_towers_that_differ_are_found(command, monkeypatch, tmp_path):
    source, logits = written("cuda-convnet", tmp_path), convert.logits

    def wrong(table, state, devices, batch):
        found = logits(table, state, devices, batch)
        return found * 1.001 if len(devices) > 1 else found

    monkeypatch.setattr(convert, "logits", wrong)
    said = command(source, tmp_path / "out.onnx")
    assert said.code == 1
    assert "onnxruntime, and 2 towers on cpu: differ by" in said.line


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        ([1.0, 2.0], True),
        ([1.0, 2.0001], True),
        ([1.0, 2.0003], False),
        ([1.0, float("nan")], False),
        ([1.0, float("inf")], False),
        ([1.0, 2.0, 3.0], False),
    ],
)
def test_what_is_close(found, passes):
    assert convert.close("this", torch.tensor(found), torch.tensor([1.0, 2.0]))[1] is passes


def test_nothing_is_close_to_zeros_but_zeros():
    zeros = torch.zeros(2, 3)
    assert convert.close("this", zeros, zeros)[1]
    assert not convert.close("this", zeros + 1e-9, zeros)[1]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_logits_that_are_no_numbers_are_not_close_to_themselves(value):
    assert not convert.close("this", torch.tensor([1.0, value]), torch.tensor([1.0, value]))[1]


# Bad input: one line, exit 2, and nothing written


def bad(command, folder, line, *words):
    before = names(folder)
    said = command(*words)
    assert said.code == 2
    assert re.fullmatch(line, said.line), said.line
    assert said.out == ""
    assert names(folder) == before


@pytest.fixture
def source(tmp_path):
    return written("textbook", tmp_path)


def test_a_wrong_shape_is_named_with_what_is_expected(command, tmp_path):
    layers = caffe_npy(CAFFE)
    layers["conv2"][0] = np.concatenate([layers["conv2"][0]] * 2, axis=2)
    path = write_npy(tmp_path / "x.npy", layers)
    line = rf"{re.escape(str(path))}: conv2 weights is \(5, 5, 12, 32\), not \(5, 5, 6, 32\)"
    bad(command, tmp_path, line, path, tmp_path / "out.onnx")


def test_a_wrong_order_is_named(command, tmp_path):
    """Kernels of Caffe's own order in a .npy."""
    layers = as_caffe_blobs(caffe_npy(CAFFE), 2)
    path = write_npy(tmp_path / "x.npy", layers)
    line = rf"{re.escape(str(path))}: conv1 weights is \(12, 3, 11, 11\), not \(11, 11, 3, 12\)"
    bad(command, tmp_path, line, path, tmp_path / "out.onnx")


def test_a_truncated_npy_is_refused(command, tmp_path):
    path = written("caffe-npy", tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    line = rf"{re.escape(str(path))}: truncated, or no pickle of arrays \(.*\)"
    bad(command, tmp_path, line, path, tmp_path / "out.safetensors")


def test_a_pickle_that_calls_something_is_refused(command, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "mark"), "w")

    path = write_npy(tmp_path / "x.npy", caffe_npy(CAFFE) | {"fc9": Evil()})
    line = rf"{re.escape(str(path))}: asks for 'io.open', which is no array .*; nothing of it was run"
    bad(command, tmp_path, line, path, tmp_path / "out.safetensors")


@pytest.mark.parametrize("opset", ["12", "23", "-1", "999"])
def test_an_unsupported_opset_is_refused(command, tmp_path, source, opset):
    bad(command, tmp_path, f"--opset {opset}: 13 to 22 are supported", source, tmp_path / "out.onnx", "--opset", opset)


def test_an_opset_of_safetensors_is_refused(command, tmp_path, source):
    line = "--opset 17: is for a name that ends in .onnx, not out.safetensors"
    bad(command, tmp_path, line, source, tmp_path / "out.safetensors", "--opset", "17")


@pytest.mark.parametrize("count", [0, 9, 11])
@pytest.mark.parametrize("ending", ["safetensors", "onnx"])
def test_a_class_list_that_does_not_match_is_refused(command, tmp_path, source, count, ending):
    listed = tmp_path / "classes.txt"
    listed.write_text("name\n" * count)
    line = rf"--classes {re.escape(str(listed))}: {count} names for 10 classes"
    bad(command, tmp_path, line, source, tmp_path / f"out.{ending}", "--classes", listed)


@pytest.mark.parametrize("classes", [["a"], "abcdefghij", {"a": 1}])
def test_classes_in_a_file_that_do_not_match_are_refused(command, tmp_path, classes):
    source = tmp_path / "a.safetensors"
    metadata = {weight_files.METADATA: json.dumps({"preset": "fashion", "towers": 1, "classes": classes})}
    save_file(draw(FASHION, 0), source, metadata)
    line = rf"{re.escape(str(source))}: its names of classes are not 10"
    bad(command, tmp_path, line, source, tmp_path / "out.onnx")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"preset": 7, "towers": 1}, "preset 7 is not what preset can be"),
        ({"preset": "fashion", "towers": "1"}, "towers '1' is not what towers can be"),
        ({"preset": "fashion", "towers": True}, "towers True is not what towers can be"),
        (
            {"dropout_scales": "x", "preset": "fashion", "towers": 1},
            "dropout_scales 'x': training or testing is expected",
        ),
        ({"preset": "nonsense", "towers": 1}, "--preset nonsense: no such preset .*"),
        ({"preset": "fashion", "towers": 0}, "--towers 0: at least 1"),
    ],
)
def test_a_file_that_says_nonsense_of_itself_is_refused(full, tmp_path, settings, line):
    source = tmp_path / "a.safetensors"
    save_file(draw(FASHION, 0), source, {weight_files.METADATA: json.dumps(settings)})
    bad(full, tmp_path, rf"({re.escape(str(source))}: )?{line}", source, tmp_path / "out.onnx")


@pytest.mark.parametrize("ending", ["safetensors", "onnx"])
def test_what_is_there_is_not_overwritten(command, tmp_path, source, ending):
    out = tmp_path / f"out.{ending}"
    out.write_text("precious")
    bad(command, tmp_path, rf"{re.escape(str(out))}: is there already; .*", source, out)
    assert out.read_text() == "precious"
    out.unlink()
    out.symlink_to(tmp_path / "nowhere")
    bad(command, tmp_path, rf"{re.escape(str(out))}: is there already; .*", source, out)


def test_what_came_in_between_is_not_overwritten(command, tmp_path, source, monkeypatch):
    out, logits = tmp_path / "out.onnx", convert.logits

    def meanwhile(*arguments):
        out.write_text("precious")
        return logits(*arguments)

    monkeypatch.setattr(convert, "logits", meanwhile)
    assert command(source, out).code == 2
    assert out.read_text() == "precious"
    assert names(tmp_path) == sorted([source.name, out.name])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["{source}", "{folder}/out.pt"], r".*out.pt: a name that ends in .safetensors or .onnx is expected"),
        (["{source}", "{folder}/out"], r".*out: a name that ends in .safetensors or .onnx is expected"),
        (["{source}", "{folder}/no/out.onnx"], r".*/no: no such folder"),
        (["{folder}/nothing", "{folder}/out.onnx"], r".*/nothing: no such file"),
        (["{folder}", "{folder}/out.onnx"], r".*: no run's folder: it holds neither checkpoints nor run.json"),
        (["{folder}/text", "{folder}/out.onnx"], r".*/text: no whole file of weights that is known by itself \(.*\)"),
        (["{source}", "{folder}/out.onnx", "--from", "caffe"], r"--from: invalid choice: 'caffe' .*"),
        (["{source}", "{folder}/out.onnx", "--from", "caffe-npy"], r".*--from caffe-npy: this is a PyTorch file"),
        (["{source}", "{folder}/out.onnx", "--from", "torchvision"], r".*: features.0.weight is missing; \(.*\) is .*"),
        (["{source}", "{folder}/out.onnx", "--preset", "alexnet"], r"--preset alexnet: these are fashion's, of 1 .*"),
        (["{source}", "{folder}/out.onnx", "--towers", "2"], r"--towers 2: these are fashion's, of 1 tower\(s\)"),
        (["{source}", "{folder}/out.onnx", "--crosses", "all"], r"--crosses all: these are fashion's, .*"),
        (["{source}", "{folder}/out.onnx", "--towers", "0"], r"--towers 0: at least 1"),
        (["{source}", "{folder}/out.onnx", "--opset", "new"], r"--opset: invalid int value: 'new'"),
        (["{source}"], r"the following arguments are required: OUT"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, source, words, line):
    (tmp_path / "text").write_text("hello")
    bad(command, tmp_path, line, *(word.format(source=source, folder=tmp_path) for word in words))


def test_packages_that_are_missing_are_named(command, tmp_path, source, monkeypatch):
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    line = r"ONNX needs onnx and onnxruntime: pip install 'splitnet\[onnx\]'"
    bad(command, tmp_path, line, source, tmp_path / "out.onnx")
    monkeypatch.setattr(convert, "find_spec", lambda name: None)
    line = r".*out.safetensors: needs the package safetensors: pip install safetensors"
    bad(command, tmp_path, line, source, tmp_path / "out.safetensors")


def test_a_disk_that_is_full_is_one_line(command, tmp_path, source, monkeypatch):
    def full_disk(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert.Path, "write_bytes", full_disk)
    said = command(source, tmp_path / "out.onnx")
    assert (said.code, said.line) == (2, f"{tmp_path}/out.onnx: cannot be written (No space left on device)")
    assert names(tmp_path) == [source.name]


@pytest.mark.parametrize("length", [255, 256])
def test_a_name_may_be_as_long_as_a_name_can_be(command, tmp_path, source, length):
    out = tmp_path / ("x" * (length - 5) + ".onnx")
    said = command(source, out)
    if length == 255:
        assert said.code == 0
        assert out.is_file()
    else:
        assert (said.code, said.line) == (2, f"{out}: cannot be written (File name too long)")
        assert names(tmp_path) == [source.name]


@pytest.mark.parametrize(
    ("name", "empty"),
    [("conv1.weight", (12, 0, 11, 11)), ("conv1.weight", ()), ("fc8.weight", (0, 512)), ("fc8.weight", ())],
)
def test_empty_weights_are_of_another_shape(command, tmp_path, name, empty):
    source = tmp_path / "a.safetensors"
    save_file(draw(FASHION, 0) | {name: torch.empty(empty)}, source)
    line = rf"{re.escape(str(source))}: {name} is {re.escape(str(empty))}, not \(.*\)"
    bad(command, tmp_path, line, source, tmp_path / "out.onnx", "--preset", "fashion", "--towers", "1")


def test_ctrl_c_leaves_nothing(command, tmp_path, source, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "logits", interrupted)
    said = command(source, tmp_path / "out.onnx")
    assert (said.code, said.err) == (130, "")
    assert names(tmp_path) == [source.name]
