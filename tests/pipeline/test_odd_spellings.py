"""Odd graphs as odd files: names that repeat or lack, listed weights, functions, Identities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, feeds, run
from odd_graphs import GRAPHS
from onnx import helper

from fusewright import optimize

NAMES = ("concat thrice behind layout", "pad -1e9 concat", "act add", "q is k is v")


def unnamed(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.name = ""


def alike(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.name = "node"


def listed(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(value)


def function(proto: onnx.ModelProto) -> None:
    reads = [v.name for v in (*proto.graph.input, *proto.graph.initializer)]
    writes = [v.name for v in proto.graph.output]
    opsets = [helper.make_opsetid("", 17)]
    whole = helper.make_function("local", "Whole", reads, writes, proto.graph.node, opsets)
    del proto.graph.node[:]
    proto.graph.node.append(helper.make_node("Whole", reads, writes, "call", domain="local"))
    proto.functions.append(whole)
    proto.opset_import.append(helper.make_opsetid("local", 1))


def identities(proto: onnx.ModelProto) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            nodes.append(helper.make_node("Identity", [name], [f"{name}_{len(nodes)}"]))
            node.input[i] = nodes[-1].output[0]
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


@pytest.mark.parametrize("spell", [unnamed, alike, listed, function, identities])
@pytest.mark.parametrize("name", NAMES)
def test_an_odd_file(name: str, spell: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    net, path = Net(), tmp_path / "net.onnx"
    proto = net.proto(*GRAPHS[name](net))
    samples = [feeds(proto, seed) for seed in range(3)]
    expected = run(proto, samples[0])
    spell(proto)
    onnx.save(proto, path)
    result = optimize(path, None, samples, strict=True)
    assert result.placement is not None
    for old, found in zip(expected, run(result.model, samples[0]), strict=True):
        assert np.linalg.norm(old - found) < 0.05 * np.linalg.norm(old)
