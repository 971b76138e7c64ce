"""Attention without splitting off the heads.

PyTorch splits [batch, tokens, heads * width] into heads, moves them in front, attends, and undoes both. The Attention
node takes the tensors as they were, which is also the layout of the flash kernels: no copy is made of any of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ...program import Op, Program, Ref

_ATTENTION = "aten.scaled_dot_product_attention.default"
_RESHAPES = ("aten.view.default", "aten.reshape.default")


@dataclass(frozen=True)
class Flat:
    """The tensors [batch, tokens, heads * width] that an attention is computed from."""

    tensors: tuple[Ref, Ref, Ref]
    heads: int


def flat_attentions(program: Program) -> tuple[dict[str, Flat], frozenset[str]]:
    """Attention operation -> its tensors before the heads were split off, where that is how they were made.

    The second value names the operations that would put the heads back: on a flat result, they have nothing to do.
    """
    ops = {op.name: op for op in program.ops}
    uses = Counter(ref.name for op in program.ops for ref in op.refs()) + Counter(value for _, value in program.outputs)
    readers = {ref.name: op for op in program.ops for ref in op.refs()}
    found: dict[str, Flat] = {}
    undone: set[str] = set()
    for op in program.ops:
        if op.target != _ATTENTION:
            continue
        sources = [_split(ref, ops) for ref in op.arguments("query", "key", "value")]
        joined = _joined(op, readers, uses)
        heads = {heads for _, heads in filter(None, sources)}
        if joined and len(heads) == 1 and None not in sources:
            query, key, value = (source[0] for source in sources if source)
            found[op.name] = Flat((query, key, value), heads.pop())
            undone.update(joined)
    return found, frozenset(undone)


def _split(ref: Ref, ops: Mapping[str, Op]) -> tuple[Ref, int] | None:
    """The tensor whose heads were split off and moved in front to make this one, and how many there are."""
    transpose = ops.get(ref.name)
    if transpose is None or transpose.target != "aten.transpose.int" or transpose.args[1:] != (1, 2):
        return None
    view = ops.get(transpose.args[0].name)
    if view is None or view.target not in _RESHAPES or view.args[0].name not in ops or view.rank != 4:
        return None
    batch, tokens, heads, width = view.shape
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    whole = ops[view.args[0].name].shape
    return (view.args[0], heads) if whole == (batch, tokens, heads * width) else None


def _joined(op: Op, readers: Mapping[str, Op], uses: Mapping[str, int]) -> tuple[str, str] | None:
    """The transpose and the reshape behind an attention, if they are all that uses it."""
    transpose = readers.get(op.name)
    if uses[op.name] != 1 or transpose is None or transpose.target != "aten.transpose.int" or transpose.args[1:] != (1, 2):
        return None
    reshape = readers.get(transpose.name)
    if uses[transpose.name] != 1 or reshape is None or reshape.target not in _RESHAPES or reshape.rank != 3:
        return None
    return (transpose.name, reshape.name) if reshape.shape[:2] == transpose.shape[:2] else None
