"""A weight in an IR: its parts in the .bin, and the layers that make float32 of them.

Float32 is one `Const`; 16 bits are that and the `Convert` that decompresses it, as OpenVINO's own fp16 compression
writes them. Codes and scales are the chain that NNCF writes: `Const` of the codes, `Convert` to f16, `Multiply` by the
scale, where groups have scales of their own `Reshape`, and `Convert` to f32.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.sax.saxutils import quoteattr

from ...precision import CODES, SCALE, Storage

ALIGNMENT = 64
SHAPE = "/shape"
"""Suffix of the blob that says how groups are put together again: the weight's own shape."""
STORED = "/stored"
"""Suffix of the `Const` of what is not float32."""
_PORT_TYPES = {"f32": "FP32", "f16": "FP16"}  # others: in capitals
_DECOMPRESSION = '<rt_info><attribute name="decompression" version="0"/></rt_info>'

Edge = tuple[int, int, int, int]  # from layer, from port, to layer, to port


@dataclass(frozen=True)
class Hole:
    """Where a weight goes: `id` is the layer's number, `shape` what the graph wants (as many elements as the parameter's)."""

    parameter: str
    id: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Blob:
    """Bytes in the .bin: element type (`f32`, `f16`, `i8`, `i64`, ...), the name of its `Const`, offset and size."""

    element_type: str
    name: str
    offset: int
    size: int


def shape_bytes(shape: tuple[int, ...]) -> bytes:
    """The contents of a SHAPE blob."""
    return struct.pack(f"<{len(shape)}q", *shape)


def layout(storage: Mapping[str, Storage], shapes: Mapping[str, tuple[int, ...]], start: int) -> dict[str, dict[str, Blob]]:
    """Parameter -> suffix -> blob, one after the other from byte `start` in the order of `shapes`, aligned."""
    places: dict[str, dict[str, Blob]] = {}
    offset = start
    for parameter, shape in shapes.items():
        stored = storage[parameter]
        types = {CODES: stored.element_type, SCALE: stored.scale_type, SHAPE: "i64"}
        sizes = stored.parts(shape) | ({} if stored.group is None else {SHAPE: len(shape_bytes(shape))})
        places[parameter] = {}
        for suffix, size in sizes.items():
            offset = -(-offset // ALIGNMENT) * ALIGNMENT
            own = suffix or ("" if stored.element_type == "f32" else STORED)
            places[parameter][suffix] = Blob(types[suffix], parameter + own, offset, size)
            offset += size
    return places


@dataclass(frozen=True)
class _Value:
    """The output of a layer."""

    layer: int
    port: int
    element_type: str
    shape: tuple[int, ...]


@dataclass
class WeightLayers:
    """The layers of one weight. next_id: the first layer number that is free.  port: of the hole's layer, with the value."""

    next_id: int
    port: int = 0
    texts: list[str] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    @classmethod
    def of(cls, hole: Hole, storage: Storage, blobs: Mapping[str, Blob], next_id: int) -> WeightLayers:
        """What makes float32 of the hole's shape of these blobs; the last layer has the hole's number and name."""
        layers = cls(next_id)
        if storage.element_type == "f32":
            layers._const(blobs[CODES], hole.shape, hole.id)
            return layers
        if not storage.is_quantized:
            value, mark = layers._const(blobs[CODES], hole.shape), _DECOMPRESSION
        else:
            value, mark = layers._dequantized(hole, storage, blobs), ""
        layers.port = layers._layer(hole.id, hole.parameter, "Convert", 'destination_type="f32"', [value], "f32", mark).port
        return layers

    def _dequantized(self, hole: Hole, storage: Storage, blobs: Mapping[str, Blob]) -> _Value:
        channels, groups = hole.shape[0], storage.groups(hole.shape)
        grouped = storage.group is not None
        shape = (channels, groups, storage.group or 0) if grouped else hole.shape
        per_scale = (channels, groups, 1) if grouped else (channels, *[1] * (len(hole.shape) - 1))
        codes, scale = self._const(blobs[CODES], shape), self._const(blobs[SCALE], per_scale)
        name, kind = hole.parameter, storage.scale_type
        wide = self._layer(None, f"{name}/wide", "Convert", f'destination_type="{kind}"', [codes], kind)
        value = self._layer(None, f"{name}/scaled", "Multiply", 'auto_broadcast="numpy"', [wide, scale], kind)
        if not grouped:
            return value
        target = self._const(blobs[SHAPE], (len(hole.shape),))
        return self._layer(None, f"{name}/whole", "Reshape", 'special_zero="false"', [value, target], kind, shape=hole.shape)

    def _const(self, blob: Blob, shape: tuple[int, ...], layer: int | None = None) -> _Value:
        dims = ",".join(str(size) for size in shape)
        data = f'element_type="{blob.element_type}" shape="{dims}" offset="{blob.offset}" size="{blob.size}"'
        return self._layer(layer, blob.name, "Const", data, [], blob.element_type, shape=shape)

    def _layer(
        self,
        layer: int | None,
        name: str,
        kind: str,
        data: str,
        inputs: list[_Value],
        element_type: str,
        mark: str = "",
        *,
        shape: tuple[int, ...] = (),
    ) -> _Value:
        """One more layer. layer: its number, None for a new one.  shape: of its output; by default that of the first input."""
        if layer is None:
            layer, self.next_id = self.next_id, self.next_id + 1
        output = _Value(layer, len(inputs), element_type, shape or inputs[0].shape)
        self.edges += [(source.layer, source.port, layer, port) for port, source in enumerate(inputs)]
        ports = "".join(_port(number, source) for number, source in enumerate(inputs))
        self.texts.append(
            f'<layer id="{layer}" name={quoteattr(name)} type="{kind}" version="opset1">\n<data {data}/>\n{mark}'
            + (f"<input>{ports}</input>\n" if inputs else "")
            + f"<output>{_port(output.port, output)}</output>\n</layer>\n"
        )
        return output


def _port(number: int, value: _Value) -> str:
    dims = "".join(f"<dim>{size}</dim>" for size in value.shape)
    kind = _PORT_TYPES.get(value.element_type, value.element_type.upper())
    return f'<port id="{number}" precision="{kind}">{dims}</port>'
