"""The graph that is written computes what the network computes, row by row, in every opset that it may be of."""

import json
from dataclasses import replace

import pytest
import torch
from layouts import batch, small
from quick import quick

from splitnet import onnx_graph
from splitnet.errors import UsageError
from splitnet.network.architecture import Norm
from splitnet.network.presets import PRESETS
from splitnet.onnx_graph import OPSET, OPSETS, check_can_export, encode, run
from splitnet.parallel.placement import build

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

TABLES = [(name, towers) for name, table in PRESETS.items() for towers in (1, 2, 4) if table.divides(towers)]


def images(table):
    pixels = batch(table, 3)[0].float()
    return pixels / 100 if table.pixels == "0..1" else pixels


def network(table):
    return build(table, devices=["cpu"], seed=3).eval()


def exported(tmp_path, table, net, opset=OPSET):
    path = tmp_path / "net.onnx"
    path.write_bytes(encode(table, net.whole_state_dict(), opset, {"splitnet": "{}"}))
    return path


def compared(path, net, pixels):
    with torch.no_grad():
        expected = net(pixels)
    return ((run(path, pixels) - expected).abs().max() / expected.abs().max()).item()


CASES = [(*table, *how) for table in TABLES for how in ((None, "training"), ("none", "testing"))]
QUICK = (
    ("alexnet", 2, None, "training"),
    ("alexnet-paper", 4, "none", "testing"),
    ("caffe", 2, None, "training"),
    ("fashion", 1, "none", "testing"),
    ("torchvision", 1, None, "training"),
    ("lenet", 1, None, "training"),
    ("alexnet-isolated", 2, "none", "testing"),
    ("alexnet-plain-pool", 1, None, "training"),
)


@pytest.mark.parametrize(("name", "towers", "crosses", "scales"), quick(CASES, *QUICK))
def test_every_table_as_a_graph(tmp_path, name, towers, crosses, scales):
    table = replace(small(name, towers, crosses), dropout_scales=scales)
    net = network(table)
    assert compared(exported(tmp_path, table, net), net, images(table)) < 1e-5


@pytest.mark.parametrize("opset", quick(OPSETS, OPSETS[0], OPSETS[-1]))
def test_every_opset(tmp_path, opset):
    table = small("alexnet", 2, "conv3")
    net = network(table)
    path = exported(tmp_path, table, net, opset)
    assert [entry.version for entry in onnx.load(path).opset_import] == [opset]
    assert compared(path, net, images(table)) < 1e-5


def test_the_batch_is_free(tmp_path):
    table = small("alexnet")
    net = network(table)
    path = exported(tmp_path, table, net)
    for count in (1, 5):
        assert compared(path, net, images(table)[:1].repeat(count, 1, 1, 1)) < 1e-5
    [entry], [out] = onnx.load(path).graph.input, onnx.load(path).graph.output
    assert [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] == ["N", 3, 96, 96]
    assert [d.dim_param or d.dim_value for d in out.type.tensor_type.shape.dim] == ["N", 10]
    assert (entry.name, out.name) == ("images", "logits")


def test_metadata_goes_with_it(tmp_path):
    table = small("fashion")
    state = network(table).whole_state_dict()
    path = tmp_path / "net.onnx"
    said = {"splitnet": json.dumps({"classes": ["a", "b – c"]})}
    path.write_bytes(encode(table, state, OPSET, said))
    assert {entry.key: entry.value for entry in onnx.load(path).metadata_props} == said


def test_parameters_keep_their_names(tmp_path):
    table = small("alexnet")
    net = network(table)
    graph = onnx.load(exported(tmp_path, table, net)).graph
    found = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    for name, tensor in net.whole_state_dict().items():
        assert torch.equal(torch.tensor(found[name]), tensor)


# Mistakes that a graph invites: each is another function.


def wrong(tmp_path, table, other):
    """How far a graph of another table with the same weights is from the network."""
    net = network(table)
    path = tmp_path / "net.onnx"
    path.write_bytes(encode(other, net.whole_state_dict(), OPSET, {}))
    return compared(path, net, images(table))


def test_a_norm_across_the_seam_is_seen(tmp_path):
    table = small("alexnet")
    assert wrong(tmp_path, table, replace(table, norm=replace(table.norm, across_towers=True))) > 1e-4


@pytest.mark.parametrize("change", [{"size": 3}, {"alpha": 1e-4}, {"beta": 0.5}, {"k": 1.0}])
def test_each_number_of_a_norm_is_seen(tmp_path, change):
    table = small("alexnet-paper")
    assert wrong(tmp_path, table, replace(table, norm=replace(table.norm, **change))) > 1e-4


@pytest.mark.parametrize("cnorm", [Norm(3, 1e-3, 0.75, 1.0), Norm(5, 2e-3, 0.75, 1.0), Norm(5, 1e-3, 0.5, 1.0)])
def test_each_number_of_the_norm_over_places_is_seen(tmp_path, cnorm):
    table = small("alexnet")
    assert wrong(tmp_path, table, replace(table, cnorm=cnorm)) > 1e-4


def test_zeros_on_the_wrong_side_are_seen(tmp_path):
    table = small("alexnet")
    assert wrong(tmp_path, table, table.changed("x", conv1={"padding": (3, 0)})) > 1e-4


def test_dropouts_factor_is_seen(tmp_path):
    table = small("fashion")
    assert wrong(tmp_path, table, replace(table, dropout_scales="testing")) > 1e-4


# What cannot be had


@pytest.mark.parametrize("opset", [-1, 0, 12, 23, 999])
def test_another_opset_is_refused(opset):
    with pytest.raises(UsageError) as refusal:
        check_can_export(opset)
    assert str(refusal.value) == f"--opset {opset}: 13 to 22 are supported"


@pytest.mark.parametrize("missing", [["onnx"], ["onnxruntime"], ["onnx", "onnxruntime"]])
def test_packages_that_are_missing_are_named(monkeypatch, missing):
    found = onnx_graph.find_spec
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None if name in missing else found(name))
    with pytest.raises(UsageError) as refusal:
        check_can_export(OPSET)
    assert str(refusal.value) == f"ONNX needs {' and '.join(missing)}: pip install 'splitnet[onnx]'"


def test_a_graph_that_onnxruntime_does_not_know_is_one_line(tmp_path):
    table = small("fashion")
    path = exported(tmp_path, table, network(table))
    model = onnx.load(path)
    model.opset_import[0].version = 999
    onnx.save(model, path)
    with pytest.raises(UsageError, match=r"^onnxruntime \S+ does not take the graph \(.*\)$"):
        run(path, images(table))
