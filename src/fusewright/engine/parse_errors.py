"""What TensorRT's parser refused, node by node, in words that say what to do."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from fusewright.errors import EngineError

# What the parser prints → what it means and what to do. First match counts; seen with
# TensorRT-RTX 1.7.1 unless a public issue is named (`#n` is NVIDIA/TensorRT).
_EXPLAINED = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), meaning)
    for pattern, meaning in (
        (
            r"plugin .*not found|Plugin not found|^false$",
            "it has no such operator, nor a plugin of that name",
        ),
        (
            r"shiftIsAllZeros|Non-zero zero point",
            "a zero-point is not 0, and only symmetric quantization exists; quantize anew",
        ),
        (
            r"Scale coefficients must all be positive|scaleAllPositive",
            "a scale is 0 or negative; one in FP16 may have underflowed: keep it above 6e-8",
        ),
        (
            r"has type Int32 but must have type .*Int8",
            "it dequantizes INT32, as onnxruntime writes biases; quantize without biases"
            " (QuantizeBias=False there)",
        ),
        (
            r"Quantized constant \((?P<name>\S+)\) is only allowed before DQ",
            "the constant '{name}' is stored quantized and is not read by a DequantizeLinear alone;"
            " keep it in float",
        ),
        (
            r"must be of same type\. `input` is of type (?P<first>\w+) but `?\w+`? is of type"
            r" (?P<second>\w+)",
            "its operands have different types, {first} and {second}; strong typing converts"
            " nothing: insert a Cast",
        ),
        (
            r"Attention operation was not supported by a dedicated kernel",
            "it has no kernel for an Attention operator of this type and head size; `fusewright"
            " optimize` writes it as MatMul, Softmax, MatMul, which it takes",
        ),
        (
            r"missing values for shape input tensor (?P<name>.+?)\.",
            "the input '{name}' holds a shape, so the engine depends on its values: store it in the"
            " file as a constant",
        ),
        (
            r"Failed to sort the model topologically",
            "its nodes form a cycle, or two of them write one tensor",
        ),
        (r"Node input was not registered", "nothing writes one of its inputs"),
        (
            r"Failed to convert ONNX dat[ea] type",
            "a tensor has a type that TensorRT lacks, such as text",
        ),
        (
            r"CUDA_SUCCESS\) failed|CUDA initialization failure",
            "this needs an NVIDIA GPU and driver, and there is none",
        ),
        (
            r"Unsupported ONNX (opset|IR)|opset.*not supported",
            "the file's opset is newer than this TensorRT reads",
        ),
    )
)


class RefusedNodes(EngineError):
    """TensorRT's parser does not take some nodes; `details` has a line for each."""


@dataclass(frozen=True)
class NodeError:
    """One complaint of the parser.

    Attributes:
        node: its name; empty where the parser names none.
        op: its operator.
        group: the group call it is in.
        reason: explained where it is a known one, else in TensorRT's words.
    """

    node: str
    op: str
    group: str | None
    reason: str

    def __str__(self) -> str:
        """`node 'conv1' (Conv) in group 'layer1': reason`."""
        text = f"node {self.node!r} ({self.op})" if self.node or self.op else ""
        text += f" in group {self.group!r}" if self.group else ""
        return f"{text}: {self.reason}" if text else self.reason


def node_errors(parser: Any) -> tuple[NodeError, ...]:
    """Everything a parser complained of, in its order, each once."""
    found = (_node_error(parser.get_error(i)) for i in range(parser.num_errors))
    return tuple(dict.fromkeys(found))


def refusal(who: str, model: str, errors: tuple[NodeError, ...]) -> EngineError:
    """The error to raise: one line with the first complaint, all of them as details."""
    if not errors:
        return EngineError(f"{who} cannot parse {model} and gives no reason")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    refused = RefusedNodes(f"{who} does not take {model}: {errors[0]}{more}")
    refused.details = tuple(map(str, errors)) if len(errors) > 1 else ()
    return refused


def explained(reason: str) -> str:
    """A message of TensorRT's in words, where it is a known one; else on one line."""
    text = " ".join(reason.split()).removeprefix("Assertion failed: ")
    # Behind that comes a complaint of its own, about the GPU that is missing.
    text = text.split(" [checkMacros.cpp", maxsplit=1)[0]
    for pattern, meaning in _EXPLAINED:
        found = pattern.search(text)
        if found:
            return meaning.format(**found.groupdict())
    return re.split(r" In \w+ at /_src/", text)[0]


def _node_error(error: Any) -> NodeError:
    group = None
    # TensorRT before 10.1 keeps no function stack, before 10.0 no node names.
    with contextlib.suppress(AttributeError):
        stack = list(error.local_function_stack())
        group = (stack[-1].rpartition(" (")[0] or stack[-1]) if stack else None
    node = op = ""
    with contextlib.suppress(AttributeError):
        node, op = error.node_name(), error.node_operator()
    return NodeError(node, op, group, explained(error.desc()))
