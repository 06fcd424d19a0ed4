"""What a user can ask of the pipeline, beside model, data and output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fusewright.calibrate import CalibrationOptions, ImageOptions
from fusewright.engine.ranges import ShapeRange
from fusewright.errors import UsageError
from fusewright.pipeline.settings import check_types
from fusewright.plan.decide import Rules
from fusewright.plan.file import formats_in, precision_in
from fusewright.plan.plan import AUTO, BLOCK_SIZE, OFF, Smooth, smooth_setting
from fusewright.quantize.int4.blocks import check_block
from fusewright.quantize.int4.weights import GPTQ, Int4Settings
from fusewright.target import FORMATS, Precision, Target, find_target
from fusewright.target.formats import BF16_OPSET, HALF_SCALES_OPSET
from fusewright.target.precision import BF16, INT8
from fusewright.target.precision import FP32 as FP32

KEEP, HALF = "keep", "half"
SEARCHES = (OFF, "plan", "latency")
IO_TYPES = (KEEP, HALF)


@dataclass(frozen=True)
class Options:
    """Settings of `optimize` and `apply`.

    Attributes:
        precision: `<quantized>+<rest>`, such as `int8+fp16`, `fp8` (with an FP32 rest) or `fp16`
            (no Q/DQ); `fp32` is collapsed only. None takes what a plan file says, else
            `int8+fp16`, or `int8` where the target reads no half scales.
        method: `mse`, `minmax`, `percentile` or `entropy`.
        percentile: of that method, in percent.
        samples: how many calibration samples are used; None takes all.
        verify_samples: on how many of them every rewrite is checked.
        strict: a rewrite that changes the results is an error instead of being undone; so are Q/DQ
            pairs that the linter refuses, instead of what they are for being left float.
        flat: leave groups as nodes instead of collapsing them into local functions; always so
            where the target parses none.
        pool_head: turn Flatten → Linear behind a global pool into a 1x1 Conv → Flatten.
        exclude: globs on group and node names, or `op:Conv`; what matches stays float.
        include: the same; where given, only what matches is quantized.
        group_precision: `PATTERN=FORMAT`, patterns likewise: what matches is `int8`, `fp8`, `int4`
            or `float` instead; where several match, the last holds.
        target: what is built for, as `find_target` reads it: `tensorrt-10:l4`, `rtx:sm120`.
        per_tensor_weights: one scale for a whole weight, instead of one per output channel.
        shapes: input name → (min, opt, max) shape of a dynamic input.
        images: preprocessing, where the data is a folder of images.
        smooth: how much of the activations' outliers SmoothQuant moves into weights: an α from 0
            to 1, `auto` (searched for each place) or `off`.
        balance: bring q, k and v to one range where one Q/DQ pair serves them.
        int4_method: of INT4 weights: `gptq`, `awq` or `rtn` (round to nearest).
        block_size: rows of an INT4 weight that share a scale, at most: 128, 64 or 32.
        io_types: `keep`, or `half`: float inputs and outputs of the model take the rest's type.
        int8_residual: the residual stream of a transformer in INT8 too.
        search: `off`; `plan`: try other placements on TensorRT-RTX's builder and keep what has
            fewer kernels and bytes; `latency`: the same on measured time. The plan file of what was
            found is written beside the output, as `<output>.plan.yaml`.
        search_budget: seconds that its builds may take.
        search_journal: file that remembers its trials, so that a second run need not repeat them;
            without it they are kept beside the output, as `<output>.search.jsonl`.
        plan: a plan file to apply instead of deciding anew; excludes `exclude` and `include`.
    """

    precision: str | None = None
    method: str = "mse"
    percentile: float = 99.99
    samples: int | None = None
    verify_samples: int = 4
    strict: bool = False
    flat: bool = False
    pool_head: bool = False
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    group_precision: tuple[str, ...] = ()
    target: str = "tensorrt"
    per_tensor_weights: bool = False
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    images: ImageOptions = ImageOptions()  # noqa: RUF009 - frozen
    smooth: Smooth = AUTO
    balance: bool = True
    int8_residual: bool = False
    int4_method: str = GPTQ
    block_size: int = BLOCK_SIZE
    search: str = OFF
    search_budget: float = 600.0
    search_journal: str | Path | None = None
    io_types: str = KEEP
    plan: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("exclude", "include", "group_precision"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} takes a list of patterns, not one text")
        check_types(self)
        self._read_plan()
        lacking = self.build_target.refusal(self.formats)  # checks both
        if lacking is not None:
            raise UsageError(f"precision {self.formats.text}: {lacking}")
        if not self.build_target.engine.local_functions:
            object.__setattr__(self, "flat", True)  # the plan notes it
        smooth = smooth_setting(self.smooth)
        if smooth is None:
            raise UsageError(f"smooth '{self.smooth}' is neither off, auto nor a number 0 to 1")
        object.__setattr__(self, "smooth", smooth)
        check_block(self.block_size)
        _ = self.int4  # checks the method
        if self.io_types not in IO_TYPES:
            raise UsageError(f"io types '{self.io_types}' are not one of {', '.join(IO_TYPES)}")
        if self.io_types == HALF and self.formats.rest == FP32:
            raise UsageError(
                f"io types half: precision {self.formats.text} has nothing in half; take one with"
                " a rest of fp16 or bf16"
            )
        self._check_search()
        if self.verify_samples < 1:
            raise UsageError(f"{self.verify_samples} samples to verify with: at least 1 is needed")
        _ = self.calibration  # checks method, percentile and samples

    def _check_search(self) -> None:
        if self.search not in SEARCHES:
            raise UsageError(f"search '{self.search}' is not one of {', '.join(SEARCHES)}")
        if not self.search_budget > 0:
            raise UsageError(f"a search budget of {self.search_budget:g} s: it has to be above 0")
        if self.search == OFF and self.search_journal is not None:
            raise UsageError("a search journal without a search: add --search plan")
        form = FORMATS.get(self.formats.quantized or "")
        movable = form is not None and not form.weights_only and form.block is None
        if self.search != OFF and not movable:
            why = ""
            if form is not None and form.weights_only:
                why = f": in {form.title} there are weights alone, left float by --exclude"
            elif form is not None:
                why = f": {form.title} is quantized where it is read, and nowhere else"
            raise UsageError(
                f"--search: precision {self.formats.text} has no Q/DQ pairs to place{why}"
            )

    def _read_plan(self) -> None:
        """What a plan file says goes before the defaults, and not together with patterns."""
        if self.plan is None:
            return
        if self.exclude or self.include or self.group_precision:
            raise UsageError(
                "--plan holds every decision: --exclude, --include and --group-precision cannot be"
                " added"
            )
        if self.precision is None:
            object.__setattr__(self, "precision", precision_in(Path(self.plan)))

    @property
    def formats(self) -> Precision:
        """`precision`, parsed, or the default of the target."""
        if self.precision is not None:
            return Precision.parse(self.precision)
        return self.build_target.default_precision

    @property
    def int4(self) -> Int4Settings:
        """The part that rounding to INT4 reads."""
        return Int4Settings(self.int4_method)

    @property
    def min_opset(self) -> int:
        """The oldest opset that holds the result.

        Raises:
            PlanError: the plan file cannot be read.
        """
        asked = {request.rpartition("=")[2].strip().lower() for request in self.group_precision}
        asked |= {self.formats.quantized} if self.formats.quantized is not None else set()
        if self.plan is not None:
            asked |= formats_in(Path(self.plan))
        known = [FORMATS[name] for name in asked if name in FORMATS]
        opsets = [form.min_opset for form in known] + [FORMATS[INT8].min_opset]
        if known and self.formats.rest != FP32:
            opsets.append(HALF_SCALES_OPSET)
        if self.formats.rest == BF16:
            opsets.append(BF16_OPSET)
        return max(opsets)

    @property
    def build_target(self) -> Target:
        """`target`, found in the table."""
        return find_target(self.target)

    @property
    def calibration(self) -> CalibrationOptions:
        """The part that calibration reads."""
        return CalibrationOptions(self.method, self.percentile, self.samples)

    @property
    def rules(self) -> Rules:
        """The part that deciding reads."""
        return Rules(
            exclude=tuple(self.exclude),
            include=tuple(self.include),
            target=self.build_target,
            quantized=self.formats.quantized,
            group_precision=tuple(self.group_precision),
            per_tensor_weights=self.per_tensor_weights,
            block_size=self.block_size,
        )

    def with_settings(self, settings: Mapping[str, Any]) -> Options:
        """A copy with some fields changed.

        Raises:
            UsageError: there is no such setting.
        """
        known = [f.name for f in fields(self)]
        for name in settings:
            if name not in known:
                raise UsageError(f"no setting '{name}'; there are {', '.join(known)}")
        return replace(self, **settings)
