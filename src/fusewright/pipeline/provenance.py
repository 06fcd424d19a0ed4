"""What a written model says of how it was made. No time, no path: runs can be diffed."""

from __future__ import annotations

import hashlib
import json

import onnx

import fusewright
from fusewright.pipeline.options import FP32, Options
from fusewright.plan.plan import Plan

PREFIX = "fusewright."


def stamp(
    proto: onnx.ModelProto, original: onnx.ModelProto, plan: Plan, options: Options, samples: int
) -> None:
    """Writes the metadata, in place; what the original file said of itself is kept.

    `fusewright.plan` is the SHA-256 of the decisions, so that two files made by the same plan
    show it.
    """
    decisions: list[object] = [
        (g.kind, g.name, g.decision if g.apply else "off", g.smooth, g.inputs_to_quantize)
        for g in plan.groups
    ]
    decisions.append(sorted(plan.residual or ()))
    entries = {e.key: e.value for e in original.metadata_props if not e.key.startswith(PREFIX)}
    entries[f"{PREFIX}version"] = fusewright.__version__
    entries[f"{PREFIX}source"] = plan.model.fingerprint
    entries[f"{PREFIX}plan"] = hashlib.sha256(json.dumps(decisions).encode()).hexdigest()
    entries[f"{PREFIX}precision"] = options.formats.text
    if options.formats.text != FP32:
        entries[f"{PREFIX}method"] = options.method
        entries[f"{PREFIX}samples"] = str(samples)
        entries[f"{PREFIX}smooth"] = str(options.smooth)
    del proto.metadata_props[:]
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = original.producer_name
    proto.producer_version = original.producer_version
    proto.domain, proto.model_version = original.domain, original.model_version
    proto.doc_string = original.doc_string
