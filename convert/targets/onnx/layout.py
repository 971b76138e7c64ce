"""How a component is written: the form of its graph, and where each weight lies in its data file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import TensorProto

from ...precision import SCALE
from .graph import TYPES, Form, Hole

if TYPE_CHECKING:
    from .. import Job

OPSETS = {"cuda": 23, "cpu": 21}
NO_BF16 = frozenset({"aten.pad.default", "aten.upsample_nearest2d.vec", "aten.mish.default"})
"""What ONNX Runtime's CUDA provider has no bf16 kernel for: Pad, Resize and Softplus. Source: its docs/OperatorKernels.md."""
ALIGNMENT = 4096  # of every weight, so that it can be mapped into memory


@dataclass(frozen=True)
class Place:
    """The bytes of a weight, or of a part of one, in the data file."""

    name: str
    element_type: str
    shape: tuple[int, ...]
    offset: int
    size: int

    def tensor(self, location: str) -> TensorProto:
        """The initializer that refers to them."""
        tensor = TensorProto(
            name=self.name,
            data_type=TYPES[self.element_type],
            dims=self.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", location), ("offset", self.offset), ("length", self.size)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def external_data(holes: Mapping[str, Hole], job: Job) -> dict[str, Place]:
    """Name of each weight and of its scales -> place: one after the other, in the order of the job's tensors, aligned."""
    places: dict[str, Place] = {}
    offset = 0
    for parameter, tensor in job.tensors.items():
        hole, stored = holes[parameter], job.storage[parameter]
        for suffix, size in stored.parts(tensor.shape).items():
            offset = -(-offset // ALIGNMENT) * ALIGNMENT
            element_type, shape = (stored.element_type, hole.shape)
            if suffix == SCALE:
                element_type, shape = stored.scale_type, hole.scale_shape(stored)
            places[parameter + suffix] = Place(parameter + suffix, element_type, shape, offset, size)
            offset += size
    return places


def form_of(job: Job) -> Form:
    """The graph's types, its opset, and what stays in float32."""
    return Form(
        storage=job.storage,
        execution=job.execution,
        io=job.io,
        opset=OPSETS[job.device],
        in_f32=NO_BF16 if job.execution == "bf16" else frozenset(),
        axes=job.component.dynamic_axes,
    )
