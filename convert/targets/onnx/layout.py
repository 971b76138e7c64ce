"""How a component is written: the form of its graph, and where each weight lies in its data file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import TensorProto

from ...precision import ELEMENT_TYPES, STORED_BYTES
from .graph import TYPES, Form, Hole

if TYPE_CHECKING:
    from .. import Job

OPSETS = {"cuda": 23, "cpu": 20}
NO_BF16 = frozenset({"aten.pad.default", "aten.upsample_nearest2d.vec"})
"""What ONNX Runtime's CUDA provider has no bf16 kernel for: Pad and Resize."""
ALIGNMENT = 4096  # of every weight, so that it can be mapped into memory


@dataclass(frozen=True)
class Place:
    """A weight's bytes in the data file."""

    hole: Hole
    precision: str
    offset: int
    size: int

    def tensor(self, location: str) -> TensorProto:
        """The initializer that refers to them."""
        tensor = TensorProto(
            name=self.hole.parameter,
            data_type=TYPES[ELEMENT_TYPES[self.precision]],
            dims=self.hole.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", location), ("offset", self.offset), ("length", self.size)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def external_data(holes: Mapping[str, Hole], order: Iterable[str], precision: str) -> list[Place]:
    """The holes one after the other, in the order of these parameters, aligned."""
    places, offset = [], 0
    for parameter in order:
        hole = holes[parameter]
        size = math.prod(hole.shape) * STORED_BYTES[precision]
        offset = -(-offset // ALIGNMENT) * ALIGNMENT
        places.append(Place(hole, precision, offset, size))
        offset += size
    return places


def form_of(job: Job) -> Form:
    """The graph's types, its opset, and what stays in float32."""
    return Form(
        storage=ELEMENT_TYPES[job.precision],
        execution=job.execution,
        io=job.io,
        opset=OPSETS[job.device],
        in_f32=NO_BF16 if job.execution == "bf16" else frozenset(),
        axes=job.component.dynamic_axes,
    )
