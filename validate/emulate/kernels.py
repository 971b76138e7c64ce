"""Which values of an ONNX graph a fused GPU kernel keeps in its f32 accumulator."""

from __future__ import annotations

from collections import defaultdict

from onnx import GraphProto, NodeProto

_CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NORMALIZATIONS = frozenset({"InstanceNormalization", "LayerNormalization"})
_ACTIVATIONS = frozenset({"Gelu", "Relu", "Sigmoid", "Tanh"})


class Kernels:
    """The graph, cut into the kernels of an engine that fuses.

    One kernel is a convolution or matmul, its bias, and an activation or a residual add; or a normalisation, the
    scale and shift that ONNX writes behind it, and an activation. SiLU is two nodes: x * Sigmoid(x).
    """

    def __init__(self, graph: GraphProto) -> None:
        self._outputs = {item.name for item in graph.output}
        self._maker = {name: node for node in graph.node for name in node.output}
        self._position = {name: position for position, node in enumerate(graph.node) for name in node.output}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        self._computed = {item.name for item in graph.input}  # from the inputs, beyond their shapes
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self._readers[name].append(node)
            if node.op_type != "Shape" and not self._computed.isdisjoint(node.input):
                self._computed.update(node.output)

    def keep(self, value: str) -> bool:
        """Whether the value never leaves a kernel: what is written is something that follows from it."""
        if value in self._outputs or value not in self._maker:
            return False
        reader = self._reader(value)
        if reader is None:
            return False
        if reader.op_type in _ACTIVATIONS:
            return self._in_accumulator(value) or self._is_normal(value)
        if self._maker[value].op_type == "Sigmoid":
            return reader.op_type == "Mul"
        if self._is_normal(value):
            # A Reshape moves what the norm wrote, unless the kernel goes on behind it.
            return self._is_affine(reader) or (reader.op_type == "Reshape" and self.keep(reader.output[0]))
        if reader.op_type != "Add" or not self._in_accumulator(value):
            return False
        # Of the two sides of a residual add, the one computed last finds the other in memory and takes it in.
        sides = [side for side in reader.input if self._in_accumulator(side)]
        return self._is_affine(reader) or value == max(sides, key=self._position.__getitem__)

    def _reader(self, value: str) -> NodeProto | None:
        """The one operation that reads the value; of SiLU's two, the Sigmoid. None if there are several, or none."""
        readers = self._readers[value]
        if len(readers) == 2:
            sigmoid, product = sorted(readers, key=lambda node: node.op_type != "Sigmoid")
            if sigmoid.op_type == "Sigmoid" and {*product.input} == {value, sigmoid.output[0]} and product.op_type == "Mul":
                return sigmoid
        return readers[0] if len(readers) == 1 else None

    def _in_accumulator(self, value: str) -> bool:
        maker = self._maker.get(value)
        if maker is None:
            return False
        return maker.op_type in _CONTRACTIONS or (
            maker.op_type == "Add" and self._is_affine(maker) and any(self._is_product(name) for name in maker.input)
        )

    def _is_product(self, value: str) -> bool:
        return value in self._maker and self._maker[value].op_type in _CONTRACTIONS

    def _is_normal(self, value: str) -> bool:
        """Whether the value is what a normalisation computes, perhaps reshaped, scaled and shifted."""
        maker = self._maker.get(value)
        if maker is None:
            return False
        if maker.op_type == "Reshape":
            return self._is_normal(maker.input[0])
        return maker.op_type in _NORMALIZATIONS or (self._is_affine(maker) and any(map(self._is_normal, maker.input)))

    def _is_affine(self, node: NodeProto) -> bool:
        """Whether the node scales or shifts by a weight."""
        return node.op_type in ("Add", "Mul") and any(name not in self._computed for name in node.input)
