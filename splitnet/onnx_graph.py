"""A network as an ONNX graph, written from its table row by row, and run by onnxruntime.

Input "images" (N, C, S, S) and output "logits" (N, classes), in float32 and with N free. It computes what the network
computes in tests: dropout is left out, or the factor that it has there. Rows of several towers are groups: each
tower's channels are normalised by themselves unless the table says otherwise.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture, Norm, Op, Row
from splitnet.network.weights import State

OPSETS = range(13, 23)
"""Versions of ONNX's operators that a graph may be of: Split takes its sizes as an input since 13."""

OPSET = 17


def check_can_export(opset: int) -> None:
    """UsageError if the packages are not there, or the graph cannot be of that opset."""
    if opset not in OPSETS:
        raise UsageError(f"--opset {opset}: {OPSETS[0]} to {OPSETS[-1]} are supported")
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UsageError(f"ONNX needs {' and '.join(missing)}: pip install 'splitnet[onnx]'")


def encode(architecture: Architecture, state: State, opset: int, metadata: Mapping[str, str]) -> bytes:
    """The file's bytes; `metadata` goes with them."""
    import onnx
    from onnx import helper

    graph = _Graph(state)
    x = "images"
    for row in architecture.rows():
        x = graph.row(architecture, row, x)
    graph.add("Identity", [x], output="logits")
    sides = [architecture.channels, architecture.size, architecture.size]
    inputs = [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", *sides])]
    outputs = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", architecture.classes])]
    version = helper.make_opsetid("", opset)
    model = helper.make_model(
        helper.make_graph(graph.nodes, architecture.name, inputs, outputs, graph.initializers),
        opset_imports=[version],
        ir_version=helper.find_min_ir_version_for([version]),
        producer_name="splitnet",
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Graph:
    """Nodes and constants under way; a tensor is known by the name of what makes it."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names: dict[str, int] = {}
        self.here = ""
        """What is being made, such as "conv1.norm": the name of the first node of it."""
        self.on_maps = True
        """Whether what was made last is (N, C, S, S), not (N, units)."""

    def add(self, op: str, inputs: list[str], output: str = "", **settings: Any) -> str:
        """A node with one output, and that output's name."""
        from onnx import helper

        name = self.free(output or self.here)
        self.nodes.append(helper.make_node(op, inputs, [name], name, **settings))
        return name

    def free(self, name: str) -> str:
        """The name, with a number behind it from the second time on."""
        count = self.names.setdefault(name, 0)
        self.names[name] += 1
        return f"{name}.{count}" if count else name

    def constant(self, name: str, values: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        name = self.free(name)
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def number(self, what: str, value: float) -> str:
        return self.constant(f"{self.here}.{what}", np.array(value, np.float32))

    def weights(self, name: str, parts: int = 1) -> list[str]:
        """A parameter, or its parts of one tower each."""
        chunks = self.state[name].detach().cpu().float().chunk(parts)
        names = [name] if parts == 1 else [f"{name}.{i}" for i in range(parts)]
        return [
            self.constant(part, np.ascontiguousarray(chunk.numpy())) for part, chunk in zip(names, chunks, strict=True)
        ]

    def split(self, x: str, parts: int, size: int) -> list[str]:
        """Equal parts, `size` channels each."""
        from onnx import helper

        names = [f"{self.here}.tower{i}" for i in range(parts)]
        sizes = self.constant(f"{self.here}.parts", np.full(parts, size, np.int64))
        self.nodes.append(helper.make_node("Split", [x, sizes], names, names[0], axis=1))
        return names

    def row(self, architecture: Architecture, row: Row, x: str) -> str:
        """The product, and what follows it in the order of the table."""
        self.here = f"{row.name}.product"
        x = self.convolve(row, x) if row.layer.kernel else self.multiply(row, x)
        self.on_maps = row.layer.kernel is not None
        for op in row.layer.after:
            self.here = f"{row.name}.{op}"
            x = self.follow(architecture, row, op, x)
        return x

    def convolve(self, row: Row, x: str) -> str:
        layer = row.layer
        assert layer.kernel is not None
        before, behind = layer.padding
        return self.add(
            "Conv",
            [x, *self.weights(f"{row.name}.weight"), *self.weights(f"{row.name}.bias")],
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=[before, before, behind, behind],
            group=row.groups,
        )

    def multiply(self, row: Row, x: str) -> str:
        """With groups, each tower's units read their own part of the input, whose channels come first to last."""
        if self.on_maps:
            x = self.add("Flatten", [x], f"{row.name}.inputs", axis=1)
        kernels = self.weights(f"{row.name}.weight", row.groups)
        biases = self.weights(f"{row.name}.bias", row.groups)
        parts = [x] if row.groups == 1 else self.split(x, row.groups, row.weight_shape[1])
        made = [self.add("Gemm", list(three), transB=1) for three in zip(parts, kernels, biases, strict=True)]
        return made[0] if len(made) == 1 else self.add("Concat", made, axis=1)

    def follow(self, architecture: Architecture, row: Row, op: Op, x: str) -> str:
        match op:
            case "relu" | "sigmoid" | "tanh":
                return self.add(op.capitalize(), [x])
            case "norm":
                towers = 1 if architecture.norm.across_towers else row.holders
                return self.normalise(architecture.norm, x, towers, row.layer.out)
            case "cnorm":
                return self.normalise_places(architecture.cnorm, x)
            case "pool":
                pool = architecture.pool
                settings: dict[str, Any] = {"kernel_shape": [pool.kernel] * 2, "strides": [pool.stride] * 2}
                return self.add("MaxPool", [x], ceil_mode=int(pool.ceil), **settings)
            case "dropout":
                if architecture.dropout_scales == "training":
                    return x
                return self.add("Mul", [x, self.number("kept", 1 - architecture.dropout)])

    def normalise(self, norm: Norm, x: str, towers: int, channels: int) -> str:
        """Over channels. Of an even number of them, ONNX's window begins one further on than ours."""
        assert norm.size % 2
        settings: dict[str, Any] = {"size": norm.size, "alpha": norm.alpha, "beta": norm.beta, "bias": norm.k}
        if towers == 1:
            return self.add("LRN", [x], **settings)
        parts = [self.add("LRN", [part], **settings) for part in self.split(x, towers, channels // towers)]
        return self.add("Concat", parts, axis=1)

    def normalise_places(self, norm: Norm, x: str) -> str:
        """Over size * size places of a channel, those outside the map counting as 0."""
        assert norm.size % 2
        mean = self.add(
            *("AveragePool", [self.add("Mul", [x, x])]),
            kernel_shape=[norm.size] * 2,
            pads=[norm.size // 2] * 4,
            count_include_pad=1,
        )
        scaled = self.add("Mul", [mean, self.number("alpha", norm.alpha)])
        base = self.add("Add", [scaled, self.number("k", norm.k)])
        return self.add("Div", [x, self.add("Pow", [base, self.number("beta", norm.beta)])])


def run(path: Path, images: Tensor) -> Tensor:
    """Logits (B, classes) of a file by onnxruntime on the CPU. UsageError if the one installed cannot read it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors, which are raised as well
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a class for each of its states
        reason = str(error).partition("\n")[0]
        raise UsageError(f"onnxruntime {onnxruntime.__version__} does not take the graph ({reason})") from error
    [logits] = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)
