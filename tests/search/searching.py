"""A plan without an engine: placements are judged by what is quantized in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from building import Net, as_model

from fusewright.errors import EngineError
from fusewright.graph.convert import to_proto
from fusewright.plan.decide import decide
from fusewright.plan.plan import Plan
from fusewright.plan.recognise import recognise
from fusewright.quantize.placement import Placement
from fusewright.search import Figures
from fusewright.verify import Comparison, OutputError


def chain_plan(widths: tuple[int, ...] = (8, 16, 16, 24), batch: int | str = "b") -> Plan:
    """Linears one behind the other, as wide as asked for; they are named fc0, fc1 ..."""
    net = Net()
    x = net.input("x", batch, 8)
    for i, (into, out) in enumerate(zip((8, *widths), widths, strict=False)):
        x = net.op("Tanh", net.op("MatMul", x, net.draw(into, out), name=f"fc{i}"))
    return planned(net, x)


def planned(net: Net, *outputs: str) -> Plan:
    """Recognised and decided by the rules."""
    plan, _ = recognise(as_model(net.proto(*outputs), clean=True))
    decide(plan)
    return plan


@dataclass(frozen=True)
class Costs:
    """What each group in float changes: kernels, bytes, and the square of the error."""

    by_group: Mapping[str, tuple[int, int, float]]
    kernels: int = 100
    bytes: int = 1000
    noise: float = 1.0

    def of(self, floats: frozenset[str]) -> tuple[int, int, float]:
        """Of a placement with these groups in float."""
        parts = [self.by_group.get(name, (0, 0, 0.0)) for name in sorted(floats)]
        kernels, size, noise = (sum(part[i] for part in parts) for i in range(3))
        return int(self.kernels + kernels), int(self.bytes + size), self.noise + noise


@dataclass
class FakeWorkshop:
    """Writes down which groups are float, instead of a model."""

    plan: Plan
    costs: Costs
    folder: Path
    made: int = 0

    @contextmanager
    def make(self, placement: Placement) -> Iterator[FakeMade]:
        """As `Workshop`."""
        self.made += 1
        floats = frozenset(g.name for g in self.plan.groups if not g.is_quantized)
        path = self.folder / f"trial{self.made}"
        path.write_text("\n".join(sorted(floats)), encoding="utf-8")
        yield FakeMade(path, self.costs.of(floats)[2] ** 0.5, self._flat(floats))
        path.unlink()

    def _flat(self, floats: frozenset[str]) -> onnx.ModelProto:
        """The float graph, in which the nodes of groups that are float say so."""
        flat = to_proto(self.plan.model.graph)
        said = {m for g in self.plan.groups if g.name in floats for m in g.members}
        for node in flat.graph.node:
            if node.name in said:
                node.attribute.append(onnx.helper.make_attribute("float", 1))
        return flat


@dataclass(frozen=True)
class FakeMade:
    path: Path
    error: float
    flat: onnx.ModelProto

    def write(self, part: onnx.ModelProto) -> Path:
        """The groups that are float in it."""
        path = self.path.with_suffix(".part")
        floats = {n.name for n in part.graph.node if any(a.name == "float" for a in n.attribute)}
        path.write_text("\n".join(sorted(floats)), encoding="utf-8")
        return path

    def compare(self) -> Comparison:
        """The error that the costs say."""
        return Comparison((OutputError("y", self.error),))


@dataclass
class FakeJudge:
    """Reads a placement's costs off what the workshop wrote down; each build takes a second."""

    costs: Costs
    fails: frozenset[str] = frozenset()
    stop_after: int | None = None
    name: str = "fake"
    adds_up: bool = False
    least_gain: float = 0.0
    no_parts: frozenset[str] = frozenset()
    builds: list[frozenset[str]] = field(default_factory=list)
    parts: list[frozenset[str]] = field(default_factory=list)

    def figures(self, model: Path) -> Figures:
        """As `Judge`."""
        floats = frozenset(model.read_text(encoding="utf-8").split())
        if model.suffix == ".part":
            self.parts.append(floats)
            if floats & self.no_parts:
                raise EngineError("no kernel for this part")
            kernels, size, _ = self.costs.of(floats)
            return Figures(kernels, size, 0, 1.0)
        if len(self.builds) == self.stop_after:
            raise KeyboardInterrupt
        self.builds.append(floats)
        if floats & self.fails:
            raise EngineError("no kernel for this")
        kernels, size, _ = self.costs.of(floats)
        return Figures(kernels, size, 0, 1.0)

    def amounts(self, found: Figures) -> dict[str, float]:
        """As `Judge`."""
        return {"kernels": found.kernels, "bytes": found.bytes}
