"""A lowered graph with named holes for its weights, and the filling of those holes into an OpenVINO IR.

Filling needs no engine: the skeleton is the IR's XML cut at every place that depends on the weights,
their precision or the repair plan.

Named constants and literals of the graph itself are part of the skeleton.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

from ...precision import Storage
from ...repair.plan import ScalePlan
from .weights import Blob, Edge, Hole, WeightLayers


@dataclass(frozen=True)
class Literal:
    """A number of the operation `op` that a repair scales by 2^k, such as a normalisation's epsilon."""

    op: str
    value: float


@dataclass(frozen=True)
class Scalar:
    """As `Literal`, of a number that is an operand: float32 at byte `offset` of the constants."""

    op: str
    value: float
    offset: int


def scalar_layer(layer_id: int, name: str, offset: int) -> str:
    """The XML of a scalar's `Const`."""
    return (
        f'<layer id="{layer_id}" name="{name}" type="Const" version="opset1">\n'
        f'<data element_type="f32" shape="" offset="{offset}" size="4" />\n'
        '<output>\n<port id="0" precision="FP32" />\n</output>\n</layer>\n'
    )


@dataclass(frozen=True)
class Skeleton:
    """A graph's XML in pieces.

    parts: in file order.  edges: between layers.  next_id: the first layer number that is free.
    constants: the bytes of the graph's own small constants, at offset 0 of the .bin, room for the scalars among them.
    precise: operations that execute in float32 on every device.
    scalars: the numbers among the constants that a repair may scale.
    """

    parts: tuple[str | Hole | Literal, ...]
    edges: tuple[Edge, ...]
    constants: bytes
    next_id: int
    precise: tuple[str, ...]
    scalars: tuple[Scalar, ...] = ()

    def scaled_constants(self, plan: ScalePlan) -> bytes:
        """The constants with the scalars as the plan scales them."""
        data = bytearray(self.constants)
        for scalar in self.scalars:
            struct.pack_into("<f", data, scalar.offset, scalar.value * 2.0 ** plan.literals.get(scalar.op, 0))
        return bytes(data)

    def holes(self) -> Iterator[Hole]:
        """Every hole, in file order."""
        return (part for part in self.parts if isinstance(part, Hole))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `Skeleton.from_json` is its inverse."""
        parts: list[Any] = []
        for part in self.parts:
            if isinstance(part, Hole):
                parts.append([part.parameter, part.id, list(part.shape)])
            else:
                parts.append([part.op, part.value] if isinstance(part, Literal) else part)
        return {
            "parts": parts,
            "edges": [list(edge) for edge in self.edges],
            "constants": base64.b64encode(self.constants).decode(),
            "next_id": self.next_id,
            "precise": list(self.precise),
            "scalars": [[scalar.op, scalar.value, scalar.offset] for scalar in self.scalars],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Skeleton:
        """The skeleton that `to_json` wrote."""

        def part(item: Any) -> str | Hole | Literal:
            if isinstance(item, str):
                return item
            return Hole(item[0], item[1], tuple(item[2])) if len(item) == 3 else Literal(item[0], item[1])

        return cls(
            parts=tuple(part(item) for item in data["parts"]),
            edges=tuple((a, b, c, d) for a, b, c, d in data["edges"]),
            constants=base64.b64decode(data["constants"]),
            next_id=data["next_id"],
            precise=tuple(data["precise"]),
            scalars=tuple(Scalar(*item) for item in data["scalars"]),
        )


def fill(
    skeleton: Skeleton,
    storage: Mapping[str, Storage],
    blobs: Mapping[str, Mapping[str, Blob]],
    plan: ScalePlan,
    runtime_options: Mapping[str, str],
) -> Iterator[str]:
    """The IR's XML, piece by piece.

    storage, blobs: by parameter.  plan: gives the literals their exponents and names the operations that stay in float32.
    runtime_options: written to rt_info, where GenAI and the GPU plugin look for them.
    Raises ValueError if the plan scales a literal that the skeleton does not have.
    """
    known = {part.op for part in (*skeleton.parts, *skeleton.scalars) if isinstance(part, (Literal, Scalar))}
    if foreign := plan.literals.keys() - known:
        raise ValueError(f"the skeleton has no literal to scale in {sorted(foreign)}")
    mark = _precise_marker((*skeleton.precise, *plan.keep_fp32))
    edges, next_id = list(skeleton.edges), skeleton.next_id
    moved: dict[int, int] = {}  # hole id -> output port, where it is no longer 0
    for part in skeleton.parts:
        if isinstance(part, str):
            yield mark(part)
        elif isinstance(part, Literal):
            yield repr(part.value * 2.0 ** plan.literals.get(part.op, 0))
        else:
            layers = WeightLayers.of(part, storage[part.parameter], blobs[part.parameter], next_id)
            yield from layers.texts
            edges += layers.edges
            moved[part.id], next_id = layers.port, layers.next_id
    yield "</layers>\n<edges>\n"
    for a, b, c, d in edges:
        yield f'<edge from-layer="{a}" from-port="{moved.get(a, b)}" to-layer="{c}" to-port="{d}"/>\n'
    yield '</edges>\n<rt_info>\n<framework value="pytorch"/>\n'
    if runtime_options:
        yield "<runtime_options>\n"
        for key, value in sorted(runtime_options.items()):
            yield f"<{key} value={quoteattr(value)}/>\n"
        yield "</runtime_options>\n"
    yield "</rt_info>\n</net>\n"


def _precise_marker(ops: tuple[str, ...]) -> Callable[[str], str]:
    """What marks the layers of these operations as precision-sensitive: plugins then execute them in f32."""
    if not ops:
        return lambda text: text
    names = "|".join(re.escape(op) for op in ops)
    layer = re.compile(rf'<layer id="\d+" name="(?:[^"]*/)?(?:{names})(?:/[^"]*)?"[^>]*>\s*(?:<data [^>]*/>)?')
    return lambda text: layer.sub(r'\g<0><rt_info><attribute name="precise" version="0"/></rt_info>', text)
