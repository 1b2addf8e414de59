"""Files of weights are read as data: what they hold comes out; what they should not hold is one line, and not run."""

import io
import json
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from foreign_weights import (
    as_caffe_blobs,
    blob,
    caffe_npy,
    cuda_convnet,
    field,
    module_state,
    narrow,
    write_caffemodel,
    write_npy,
)
from safetensors.torch import save

from splitnet import pickled_arrays
from splitnet.errors import UsageError
from splitnet.pickled_arrays import Array
from splitnet.weight_files import KINDS, METADATA, read, read_classes

CAFFE, ALEXNET, FASHION = narrow("caffe", 2), narrow("alexnet", 2), narrow("fashion", 1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights"


def refused(path, kind=None):
    """The one line."""
    with pytest.raises(UsageError) as refusal:
        read(path, kind)
    line = str(refusal.value)
    assert "\n" not in line
    assert str(path) in line
    return line.removeprefix(f"{path}: ")


# Arrays in pickles


def loaded(data):
    return pickled_arrays.load(io.BytesIO(data))


ARRAYS = [
    np.arange(24, dtype=dtype).reshape(2, 3, 4) for dtype in ("<f4", "<f8", ">f4", ">f8", "<f2", "<i4", ">i8", "u1")
]
ARRAYS += [np.asfortranarray(ARRAYS[0]), np.float32([[1.5]]), np.array(2.5), np.zeros((0, 3), "f4"), ARRAYS[0][:, ::2]]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_array_comes_out_as_it_was(array, protocol):
    found = loaded(pickle.dumps({"a": [array, array]}, protocol))["a"]
    assert all(isinstance(part, Array) for part in found)
    assert found[0].values.dtype == array.dtype
    assert found[0].values.shape == array.shape
    assert np.array_equal(found[0].values, array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_containers_and_scalars_come_out_as_they_were(protocol):
    held = {"list": [1, 2.5, "three", b"four", None, True], "tuple": (1, (2,)), "ordered": OrderedDict(a=1), 3: "key"}
    assert loaded(pickle.dumps(held, protocol)) == held
    assert loaded(pickle.dumps([np.float32(1.5), np.int64(7)], protocol)) == [1.5, 7]
    objects = loaded(pickle.dumps(np.array([{"a": 1}, None], object), protocol))
    assert objects.values.tolist() == [{"a": 1}, None]


def test_an_array_of_python_2_comes_out():
    """Its text is bytes, and NumPy's module had another name; written here opcode by opcode."""
    values = np.arange(6, dtype="<f4").reshape(2, 3) - 2.5
    raw = values.tobytes()
    data = (
        b"\x80\x02}q\x01U\x05conv1q\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
        b"K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )
    assert np.array_equal(pickle.loads(data, encoding="latin1")["conv1"], values)  # it is one
    assert np.array_equal(loaded(data)["conv1"].values, values)


def test_numpys_old_and_new_names_are_the_same():
    data = pickle.dumps(ARRAYS[0], 2)
    assert b"numpy._core.multiarray" in data
    assert np.array_equal(loaded(data.replace(b"numpy._core", b"numpy.core")).values, ARRAYS[0])


class Evil:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evils(mark):
    """Calls that leave a file at `mark` where they are made."""
    code = f"open({str(mark)!r}, 'w')"
    return {
        "os.system": Evil(os.system, f"touch {mark}"),
        "eval": Evil(eval, code),
        "exec": Evil(exec, code),
        "subprocess": Evil(subprocess.check_call, ["touch", str(mark)]),
        "open": Evil(open, str(mark), "w"),
        "import": Evil(__import__, "antigravity"),
        "getattr": Evil(getattr, [], "append"),
        "numpy": Evil(np.save, str(mark), [1]),
        "loads": Evil(pickle.loads, b"."),
    }


@pytest.mark.parametrize("name", evils(""))
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["pickle", "npy", "object array"])
def test_a_pickle_that_calls_something_is_refused_and_nothing_runs(tmp_path, path, name, protocol, where):
    mark = tmp_path / "mark"
    evil = evils(mark)[name]
    content = {"conv1": [evil, np.zeros(3, np.float32)]}
    if where == "pickle":
        path.write_bytes(b"\x80\x02" * (protocol == 0) + pickle.dumps(content, protocol))
    else:
        write_npy(path, content if where == "npy" else np.array(evil, object))
    assert "is no array and no plain container; nothing of it was run" in refused(path)
    assert not mark.exists()


def test_such_a_pickle_would_run_elsewhere(tmp_path):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(evils(mark)["os.system"]))
    assert mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cnumpy\nndarray\nq\x00(K\x01tR.",
        b"\x80\x02cnumpy\nndarray\n}X\x06\x00\x00\x00valuesK\x07sb.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(tR.",
        b"\x80\x02cnumpy\ndtype\nU\x02V9\x85R.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02.",
        b"\x80\x02]q\x00h\x00a.",
    ],
)
def test_odd_pickles_are_refused_or_hold_no_network(path, data):
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize("size", [5, 7, 25])
def test_bytes_that_are_not_the_shapes_are_refused(size):
    data = pickle.dumps(np.arange(6, dtype="u1"), 4)
    assert b"C\x06\x00\x01\x02\x03\x04\x05" in data
    data = data.replace(b"C\x06\x00\x01\x02\x03\x04\x05", b"C" + bytes([size]) + bytes(size))
    with pytest.raises(UsageError, match="truncated, or no pickle of arrays"):
        loaded(data)


# .npy


def test_caffes_npy_is_read(path):
    layers = caffe_npy(CAFFE)
    source = read(write_npy(path, layers))
    assert source.layout == "caffe-npy"
    assert list(source.tensors) == [f"{name} {what}" for name in layers for what in ("weights", "biases")]
    for name, (weights, biases) in layers.items():
        assert np.array_equal(source.tensors[f"{name} weights"], weights)
        assert np.array_equal(source.tensors[f"{name} biases"], biases)


def test_its_layers_may_be_dicts_and_tuples(path):
    layers = {"conv1": {"weights": np.ones((2, 3)), "biases": np.zeros(3)}, "fc8": (np.ones((2, 3)), np.zeros(3))}
    assert list(read(write_npy(path, layers)).tensors) == [
        f"{name} {what}" for name in layers for what in ("weights", "biases")
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (np.zeros((2, 3), np.float32), "an array of float32, (2, 3); a dict of layers is expected"),
        (np.array([{}, {}], object), "an array of object, (2,); a dict of layers is expected"),
        (np.array(7, object), "holds a int; a dict of layers is expected"),
        ({"conv1": [np.zeros(3)]}, "conv1 is not [weights, biases]"),
        ({"conv1": 7}, "conv1 is not [weights, biases]"),
        ({"conv1": ["weights", "biases"]}, "conv1 weights is a str; an array of numbers is expected"),
        ({"conv1": {"weights": np.zeros(3)}}, "conv1 biases is a nonetype; an array of numbers is expected"),
        ({"conv1": [np.array([None]), np.zeros(3)]}, "conv1 weights is a array; an array of numbers is expected"),
    ],
)
def test_another_npy_is_refused(path, content, line):
    assert refused(write_npy(path, content)) == line


# cuda-convnet


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_checkpoint_of_cuda_convnet_is_read(path, as_list, protocol):
    checkpoint = cuda_convnet(ALEXNET)
    layers = checkpoint["model_state"]["layers"]
    if as_list:
        checkpoint["model_state"]["layers"] = list(layers.values())
    path.write_bytes(pickle.dumps(checkpoint, protocol))
    source = read(path)
    assert source.layout == "cuda-convnet"
    assert source.inputs["fc2048bb"] == ("hs1b", "hs1a")
    assert source.keeps == dict.fromkeys(("hs1a", "hs1b", "hs2a", "hs2b"), 0.5)
    for name, layer in layers.items():
        for i, matrix in enumerate(layer.get("weights", ())):
            assert np.array_equal(source.tensors[f"{name} weights[{i}]"], matrix)


def test_dropout_of_cuda_convnet2_halves_nothing(path):
    path.write_bytes(pickle.dumps(cuda_convnet(ALEXNET, hs="dropout"), 2))
    assert read(path).keeps == {}


@pytest.mark.parametrize("module", ["options", "python_util.options"])
def test_the_command_line_in_a_checkpoint_is_left_out(path, monkeypatch, module):
    """Objects of cuda-convnet's own, which no one has any more."""
    theirs = types.ModuleType(module)
    ran = []
    theirs.OptionsParser = type("OptionsParser", (), {"__module__": module, "__setstate__": lambda *_: ran.append(1)})
    monkeypatch.setitem(sys.modules, module, theirs)
    if "." in module:
        monkeypatch.setitem(sys.modules, "python_util", types.ModuleType("python_util"))
    parser = theirs.OptionsParser()
    parser.options = {"batch": [1, theirs.OptionsParser]}
    path.write_bytes(pickle.dumps(cuda_convnet(ALEXNET) | {"op": parser}, 2))
    assert len(read(path).tensors) > 20
    assert not ran


def broken_checkpoint(**changes):
    checkpoint = cuda_convnet(ALEXNET)
    for name, change in changes.items():
        checkpoint["model_state"]["layers"][name] |= change
    return checkpoint


NO_LAYERS = "no checkpoint of cuda-convnet: there are no layers in its model_state"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([1, 2], NO_LAYERS),
        ({}, NO_LAYERS),
        ({"model_state": {"layers": 7}}, NO_LAYERS),
        ({"model_state": {"layers": [7]}}, NO_LAYERS),
        ({"model_state": {"layers": {"conv1a": 7}}}, NO_LAYERS),
        (broken_checkpoint(conv1a={"weights": 7}), "conv1a has a int of weights; a list is expected"),
        (broken_checkpoint(conv1a={"inputs": "data"}), "conv1a has a str of inputs; a list is expected"),
        (
            broken_checkpoint(conv1a={"weights": [7]}),
            "conv1a weights[0] is a int; an array of numbers is expected",
        ),
        (broken_checkpoint(hs1a={"keep": 0}), "hs1a keeps 0; a share of the units is expected"),
        (broken_checkpoint(hs1a={"keep": "half"}), "hs1a keeps half; a share of the units is expected"),
    ],
)
def test_another_pickle_is_refused(path, content, line):
    path.write_bytes(pickle.dumps(content, 2))
    assert refused(path) == line


# .caffemodel


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_a_caffemodel_is_read(tmp_path, old, double):
    blobs = as_caffe_blobs(caffe_npy(CAFFE), 2)
    source = read(write_caffemodel(tmp_path / "x.caffemodel", blobs, old, double))
    assert source.layout == "caffemodel"
    assert len(source.tensors) == 2 * len(blobs)
    for name, (weights, biases) in blobs.items():
        found = source.tensors[f"{name} weights"]
        assert found.shape == ((1,) * (4 - weights.ndim) + weights.shape if old else weights.shape)
        assert np.array_equal(found.reshape(weights.shape), weights)
        assert np.array_equal(source.tensors[f"{name} biases"].flatten(), biases)
        assert found.dtype == torch.float32


def test_a_caffemodel_of_another_name_needs_to_be_said(path):
    write_caffemodel(path, as_caffe_blobs(caffe_npy(CAFFE), 2))
    assert "--from says which" in refused(path)
    assert read(path, "caffemodel").layout == "caffemodel"


@pytest.mark.parametrize("old", [False, True])
def test_caffenet_is_told_from_alexnet(tmp_path, old):
    """Its shapes are the same, but it pools before it normalises."""
    path, blobs = tmp_path / "x.caffemodel", as_caffe_blobs(caffe_npy(CAFFE), 2)
    read(write_caffemodel(path, blobs, old, names=("norm1", "pool1")))
    write_caffemodel(path, blobs, old, names=("pool1", "norm1"))
    assert refused(path) == "pool1 comes before norm1 in it: this is CaffeNet, not bvlc_alexnet"


def test_numbers_that_are_not_the_shapes_are_refused(tmp_path):
    path = tmp_path / "x.caffemodel"
    short = blob(np.zeros((3, 4)), old=False).replace(field(1, b"\x03\x04"), field(1, b"\x03\x05"))
    path.write_bytes(field(100, field(1, "conv1") + field(7, short)))
    assert refused(path) == "conv1 weights has 12 numbers for a shape of (3, 5)"
    path.write_bytes(field(100, field(1, "data")))
    assert refused(path) == "no layers with weights in it"
    path.write_bytes(b"")
    assert refused(path) == "no layers with weights in it"


# PyTorch and safetensors


@pytest.mark.parametrize("layout", ["torchvision", "textbook"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_is_read(path, layout, legacy, wrapped):
    state = module_state(layout, FASHION)
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path, _use_new_zipfile_serialization=not legacy)
    source = read(path)
    assert source.layout == layout
    assert all(torch.equal(source.tensors[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([torch.ones(2)], "holds a list; tensors by name are expected"),
        ({}, "holds a dict; tensors by name are expected"),
        ({"a": 7}, "'a' is a int; tensors by name are expected"),
        ({7: torch.ones(2)}, "'7' is a Tensor; tensors by name are expected"),
    ],
)
def test_another_pytorch_file_is_refused(path, content, line):
    torch.save(content, path)
    assert refused(path) == line


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_is_refused(path, legacy):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3)), path, _use_new_zipfile_serialization=not legacy)
    line = refused(path)
    assert line.startswith("asks for 'torch.nn.modules.")
    assert line.endswith("; tensors alone are read: save the module's state_dict()")


def test_names_of_a_parallel_module_are_the_modules(path):
    state = module_state("torchvision", FASHION)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    assert read(path).tensors.keys() == state.keys()


def test_safetensors_are_read_with_what_convert_said_of_them(path):
    state = module_state("textbook", FASHION)
    path.write_bytes(save(state))
    assert (read(path).layout, read(path).settings) == ("textbook", {})
    path.write_bytes(save(state, {METADATA: json.dumps({"preset": "alexnet"}), "format": "pt"}))
    assert read(path).settings == {"preset": "alexnet"}
    path.write_bytes(save(state, {METADATA: "[1]"}))
    assert read(path).settings == {}
    path.write_bytes(save(state, {METADATA: "{"}))
    assert refused(path).startswith("truncated, or not a safetensors file (")


# Whatever is in them


def written(kind, path):
    """A small file of each kind."""
    if kind == "caffe-npy":
        return write_npy(path, {"conv1": [np.ones((2, 3), np.float32), np.zeros(3, np.float32)]})
    if kind == "caffemodel":
        return write_caffemodel(path.with_suffix(".caffemodel"), {"conv1": [np.ones((3, 2, 1, 1)), np.zeros(3)]})
    if kind == "cuda-convnet":
        layer = {"weights": [np.ones((2, 3), np.float32)], "biases": np.zeros((3, 1), np.float32), "inputs": ["data"]}
        path.write_bytes(pickle.dumps({"model_state": {"layers": {"conv1a": layer}}}, 2))
    elif kind == "splitnet":
        path.write_bytes(save({"conv1.weight": torch.ones(3, 2, 1, 1)}, {METADATA: "{}"}))
    else:
        torch.save({"features.0.weight": torch.ones(3, 2)}, path)
    return path


@pytest.mark.parametrize("kind", ["caffe-npy", "caffemodel", "cuda-convnet", "splitnet", "torchvision"])
def test_a_truncated_file_is_one_line(tmp_path, kind):
    path = written(kind, tmp_path / "weights")
    data = path.read_bytes()
    read(path)
    complete = {len(data)}
    if kind == "caffemodel":  # whole again wherever a layer ends
        complete |= {size for size in range(len(data)) if data[size:].startswith(field(100, "")[:2])}
    for size in range(0, len(data), 2 if len(data) < 600 else 13):
        if size not in complete:
            path.write_bytes(data[:size])
            refused(path)


@pytest.mark.parametrize("kind", ["caffe-npy", "caffemodel", "cuda-convnet", "splitnet", "torchvision"])
def test_a_damaged_file_is_read_or_one_line(tmp_path, kind):
    path = written(kind, tmp_path / "weights")
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(data)
        for place in generator.integers(0, len(data), generator.integers(1, 4)):
            broken[place] = generator.integers(256)
        path.write_bytes(broken)
        try:
            read(path)
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017 either is right


@pytest.mark.parametrize("content", [b"", b"hello", b"\n", b"(", b"\x1f\x8b\x08", b"\x89HDF\r\n\x1a\n"])
def test_unknown_files_are_refused(path, content):
    path.write_bytes(content)
    line = refused(path)
    assert line.startswith("no whole file of weights that is known by itself (--from says which: ")
    assert all(kind in line for kind in KINDS)


@pytest.mark.parametrize("forced", KINDS)
@pytest.mark.parametrize("kind", ["caffe-npy", "cuda-convnet", "splitnet", "torchvision"])
def test_a_file_of_another_container_than_said_is_refused(path, kind, forced):
    written(kind, path)
    by_name = ("splitnet", "torchvision", "textbook")
    if forced == kind or (kind in by_name and forced in by_name):
        assert read(path, forced).layout == forced
    else:
        assert refused(path, forced).startswith(f"--from {forced}: this is a ")


def test_what_is_not_there_or_no_file_is_said(path):
    assert refused(path) == "no such file"
    os.mkfifo(path)
    assert refused(path) == "not a file"
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=r"no run's folder: it holds neither checkpoints nor run\.json"):
        read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_what_may_not_be_read_is_said(path):
    path.touch(mode=0)
    assert refused(path) == "cannot be read (Permission denied)"


# Classes


def test_classes_are_read(path):
    path.write_text("tench, Tinca tinca\n  goldfish \n\nstingray – Rochen\n", encoding="utf-8")
    assert read_classes(path, 3) == ("tench, Tinca tinca", "goldfish", "stingray – Rochen")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"one\ntwo\n", "2 names for 1,000 classes"),
        (b"", "0 names for 1,000 classes"),
        (b"\xff\xfe", "cannot be read (not UTF-8 text)"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_other_class_lists_are_refused(path, content, line):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as refusal:
        read_classes(path, 1000)
    assert str(refusal.value) == f"--classes {path}: {line}"
