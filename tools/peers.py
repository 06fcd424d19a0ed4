"""One job of another tool, as its users write it, in a process of its own for the benchmarks.

    python tools/peers.py plain MODEL.onnx DATA.npz
    python tools/peers.py onnxruntime MODEL.onnx DATA.npz -o OUT.onnx --method entropy
    python tools/peers.py modelopt MODEL.onnx DATA.npz -o OUT.onnx --method max

`plain` loads the model and runs every sample through it, one by one: the floor under any
calibration. `onnxruntime` is quant_pre_process and quantize_static, `modelopt` is NVIDIA's
modelopt.onnx.quantization; both write INT8 Q/DQ, symmetric, weights per channel, the remainder in
float32. All read DATA with np.load, whole, and take every sample in it. --float names a node that
the tool is told to leave float. The interpreter that runs this needs the named tool alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METHODS = {
    "onnxruntime": ("minmax", "entropy", "percentile"),
    "modelopt": ("max", "entropy"),
}


def run_plain(model: Path, data: Path) -> None:
    """Runs every sample of `data`, batch 1, on onnxruntime's CPU defaults."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    samples = dict(np.load(data))
    for i in range(len(next(iter(samples.values())))):
        session.run(None, {name: array[i : i + 1] for name, array in samples.items()})


def quantize_onnxruntime(
    model: Path, data: Path, out: Path, method: str, excluded: Sequence[str] = ()
) -> None:
    """Preprocesses and quantizes for TensorRT as onnxruntime documents it, one sample a batch."""
    import numpy as np
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """One sample at a time."""

        def __init__(self, samples: dict[str, Any]) -> None:
            count = len(next(iter(samples.values())))
            feeds = ({k: v[i : i + 1] for k, v in samples.items()} for i in range(count))
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            """The next feed, None at the end."""
            return next(self._feeds, None)

    methods = quantization.CalibrationMethod
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "clean.onnx"
        quant_pre_process(model, clean, skip_symbolic_shape=True)
        quantization.quantize_static(
            clean,
            out,
            Reader(dict(np.load(data))),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(excluded),
            calibrate_method=getattr(methods, {"minmax": "MinMax"}.get(method, method.title())),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,  # TensorRT wants it float
            },
        )


def quantize_modelopt(
    model: Path, data: Path, out: Path, method: str, excluded: Sequence[str] = ()
) -> None:
    """Quantizes with ModelOpt's defaults, calibrating on the CPU, the remainder in float32."""
    import numpy as np
    from modelopt.onnx.quantization import quantize

    with tempfile.TemporaryDirectory() as folder:
        # A copy: ModelOpt 0.47 writes inferred shapes back into the file it is given.
        copy = shutil.copyfile(model, Path(folder) / model.name)
        quantize(
            str(copy),
            quantize_mode="int8",
            calibration_data=dict(np.load(data)),
            calibration_method=method,
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(out),
            # Patterns, matched from the start of a name.
            nodes_to_exclude=[f"{re.escape(name)}$" for name in excluded],
            log_level="ERROR",
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=("plain", *METHODS))
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="npz keyed by input name, samples on axis 0")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument(
        "--method", help="; ".join(f"{k}: {', '.join(v)}" for k, v in METHODS.items())
    )
    parser.add_argument("--float", action="append", default=[], metavar="NODE", help="repeatable")
    options = parser.parse_args()
    if options.tool == "plain":
        run_plain(options.model, options.data)
        return
    if options.method not in METHODS[options.tool] or options.output is None:
        parser.error(f"{options.tool} takes --method {{{','.join(METHODS[options.tool])}}} and -o")
    jobs = {"onnxruntime": quantize_onnxruntime, "modelopt": quantize_modelopt}
    job = jobs[options.tool]
    job(options.model, options.data, options.output, options.method, options.float)


if __name__ == "__main__":
    main()
