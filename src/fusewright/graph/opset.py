"""Opset conversion, by onnx's converter; the result is verified like every other rewrite."""

from __future__ import annotations

import onnx
import onnx.version_converter

from fusewright.errors import ModelError
from fusewright.graph.light import with_weights, without_weights
from fusewright.graph.load import with_inner
from fusewright.graph.session import first_line

# Per-channel scales of weights exist from 13 on.
INT8_OPSET = 13
# LayerNormalization exists from 17 on.
LAYERNORM_OPSET = 17
# Here Pad took its amounts and fill as inputs, and Resize its rules of rounding.
_PADS_AND_RESIZE = 11
_ASIDE = "fusewright.plugins"


def has_layer_norm_chain(proto: onnx.ModelProto) -> bool:
    """Whether a model takes the mean of (x − mean(x))², as a LayerNorm written out does."""
    made = {name: node for node in proto.graph.node for name in node.output}

    def maker(node: onnx.NodeProto | None, slot: int, *ops: str) -> onnx.NodeProto | None:
        if node is None or len(node.input) <= slot:
            return None
        source = made.get(node.input[slot])
        return source if source is not None and source.op_type in ops else None

    for node in proto.graph.node:
        if node.op_type in ("ReduceMean", "ReduceSumSquare"):
            squares = node.op_type == "ReduceSumSquare"
            square = node if squares else maker(node, 0, "Pow", "Mul")
            if maker(maker(square, 0, "Sub"), 1, "ReduceMean") is not None:
                return True
    return False


def convert_opset(proto: onnx.ModelProto, minimum: int) -> onnx.ModelProto:
    """Raises the model's standard opset to `minimum`; a newer one stays as it is.

    Local functions must have been inlined: the converter drops them and leaves their calls.

    Raises:
        ModelError: the converter has no adapter for an operator of the model.
    """
    present = next(e.version for e in proto.opset_import if e.domain in ("", "ai.onnx"))
    if present >= minimum:
        return proto
    light = without_weights(proto)
    plugins = _set_aside(light, present)
    try:
        converted = onnx.version_converter.convert_version(light, minimum)
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"opset {present} cannot be converted to {minimum}: {first_line(error)}"
        ) from error
    _put_back(converted, plugins)
    _repair(converted.graph, present)
    converted.graph.doc_string = proto.graph.doc_string
    # Caffe2-era files carry IR versions that predate the opset they are converted to.
    oldest = onnx.helper.find_min_ir_version_for(list(converted.opset_import), ignore_unknown=True)
    converted.ir_version = max(converted.ir_version, oldest)
    return with_weights(converted, proto)


def _set_aside(proto: onnx.ModelProto, opset: int) -> bool:
    """Plugins that stand in the standard domain get another: the converter refuses them there.

    So do operators that are newer than the opset that the file declares.
    """
    unknown = [
        node
        for node in with_inner(proto.graph.node)
        if node.domain in ("", "ai.onnx")
        and not onnx.defs.has(node.op_type, max_inclusive_version=opset)
    ]
    for node in unknown:
        node.domain = _ASIDE
    if unknown:
        proto.opset_import.add(domain=_ASIDE, version=1)
    return bool(unknown)


def _put_back(proto: onnx.ModelProto, plugins: bool) -> None:
    for node in with_inner(proto.graph.node) if plugins else ():
        if node.domain == _ASIDE:
            node.domain = ""
    for entry in [e for e in proto.opset_import if e.domain == _ASIDE]:
        proto.opset_import.remove(entry)


def _repair(graph: onnx.GraphProto, was: int) -> None:
    """Puts right what the converter's adapters to opset 11 leave wrong, in place."""
    if was >= _PADS_AND_RESIZE:
        return
    for node in graph.node:
        if node.op_type == "Pad":
            # The fill became an input; of a Pad by reflection or edge the attribute is left over.
            kept = [a for a in node.attribute if a.name != "value"]
            del node.attribute[:]
            node.attribute.extend(kept)
        elif node.op_type == "Resize":
            # Upsample and the first Resize scale from the corner; the default since is half_pixel.
            make = onnx.helper.make_attribute
            node.attribute.append(make("coordinate_transformation_mode", "asymmetric"))
            if any(a.name == "mode" and a.s == b"nearest" for a in node.attribute):
                node.attribute.append(make("nearest_mode", "floor"))
