"""Binary operations of mixed types, and what else an operation's arguments decide: on every engine as in PyTorch."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaefix.convert.capture import capture
from vaefix.convert.program import Input, Program, Ref
from vaefix.convert.promotion import promoted
from vaefix.convert.repair.plan import ScalePlan
from vaefix.runtime.errors import ModelError

from .small import ENGINES, loaded, program_of

DTYPES = ("bool", "int32", "int64", "float32")
NUMBERS = (True, 2, 1, 2.5, 1.0, 0)
OPERATIONS = {name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "eq", "ne", "lt", "le", "gt", "ge")}


def samples(kind: str) -> list[np.ndarray]:
    """One for each dtype, of values that meet each other often; `a` and `b` are matrices, `s` have no dimension."""
    random = np.random.default_rng(ord(kind))
    values = [random.integers(1, 4, () if kind == "s" else (3, 4)) for _ in DTYPES]
    whole = [np.asarray(value, dtype) for value, dtype in zip(values, DTYPES, strict=True)]
    whole[0] = np.ones_like(whole[0]) if kind != "a" else np.asarray(values[0] > 1)  # what one divides by
    whole[3] = np.asarray(whole[3] + (0.5 if kind == "b" else 0), np.float32)
    return whole


FEEDS = {f"{kind}_{dtype}": value for kind in "abs" for dtype, value in zip(DTYPES, samples(kind), strict=True)}
PAIRS = [(f"a_{left}", f"{kind}_{right}") for left, right in itertools.product(DTYPES, DTYPES) for kind in "bs"]


class Mixed(torch.nn.Module):
    """Every pair of types and every number that PyTorch accepts, each an output of its own."""

    def __init__(self, function: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        tensors = {name: torch.from_numpy(value) for name, value in FEEDS.items()}
        pairs = [*PAIRS, *((f"a_{dtype}", number) for dtype, number in itertools.product(DTYPES, NUMBERS))]
        self.pairs = [(left, right) for left, right in pairs if self._accepts(tensors, left, right)]

    def _accepts(self, tensors: dict[str, torch.Tensor], left: str, right: Any) -> bool:
        if self.function is operator.truediv and right == 0:
            return False
        try:
            self.function(tensors[left], tensors[right] if isinstance(right, str) else right)
        except RuntimeError:  # truth values are not subtracted
            return False
        return True

    # torch.export gives no dynamic shapes to *args
    def forward(
        self, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any, b2: Any, b3: Any, s0: Any, s1: Any, s2: Any, s3: Any
    ) -> Any:
        values = dict(zip(FEEDS, (a0, a1, a2, a3, b0, b1, b2, b3, s0, s1, s2, s3), strict=True))
        return tuple(self.function(values[left], values.get(right, right)) for left, right in self.pairs)


@pytest.fixture(scope="module", params=OPERATIONS)
def mixed(request: pytest.FixtureRequest) -> tuple[Program, dict[str, torch.Tensor]]:
    """An operation captured on all pairs of operands, and what PyTorch makes of them."""
    module = Mixed(OPERATIONS[request.param])
    names = [f"{left} {request.param} {right}" for left, right in module.pairs]
    inputs = [Input(name, str(value.dtype), (None, 4) if value.ndim else ()) for name, value in FEEDS.items()]
    expected = module(*map(torch.from_numpy, FEEDS.values()))
    return capture(module, inputs, names), dict(zip(names, expected, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_binary_operation_of_mixed_types_is_pytorch_s(
    mixed: tuple[Program, dict[str, torch.Tensor]], engine: str, tmp_path: Path
) -> None:
    program, expected = mixed
    found = loaded(engine, program, tmp_path)(FEEDS)
    assert len(expected) >= 33
    for name, wanted in expected.items():
        assert (found[name].dtype, found[name].shape) == (wanted.numpy().dtype, wanted.shape), name
        np.testing.assert_allclose(found[name], wanted.numpy(), rtol=1e-6, atol=0, err_msg=name)


def test_promotion_is_pytorch_s_for_every_pair() -> None:
    operands = [(dtype, rank) for dtype in DTYPES for rank in (0, 2)]
    types = {f"{dtype}{rank}": (dtype, rank) for dtype, rank in operands} | {"size": ("int", 0)}

    def in_torch(operand: Ref | float) -> torch.Tensor | float:
        if not isinstance(operand, Ref):
            return operand
        dtype, rank = types[operand.name]
        return 3 if dtype == "int" else torch.ones((2,) * rank, dtype=getattr(torch, dtype))

    for left, right in itertools.product(map(Ref, types), [*map(Ref, types), *NUMBERS]):
        expected = torch.result_type(in_torch(left), in_torch(right))
        assert f"torch.{promoted(types, left, right)}" == str(expected), (left, right)


def assert_as_in_pytorch(
    engine: str, function: Callable[[torch.Tensor], torch.Tensor], array: np.ndarray, folder: Path
) -> None:
    expected = function(torch.from_numpy(array)).numpy()
    program = program_of(function, Input("a", str(array.dtype), (None, array.shape[1])))
    found = loaded(engine, program, folder)({"a": array})["y"]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_first_of_equal_maxima_is_found_in_a_comparison(engine: str, tmp_path: Path) -> None:
    """How CLIP finds the end of a prompt."""
    ids = np.array([[1, 7, 7, 7], [7, 1, 1, 7], [1, 2, 3, 4], [1, 2, 3, 7]])
    assert_as_in_pytorch(engine, lambda a: (a.to(torch.int) == 7).int().argmax(dim=-1), ids, tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_expansion_keeps_what_is_already_wider(engine: str, tmp_path: Path) -> None:
    assert_as_in_pytorch(engine, lambda a: a.unsqueeze(1).expand(-1, 3, -1) + 0.0, FEEDS["a_float32"], tmp_path)


@pytest.mark.parametrize("function", [lambda a: a + 0.5, lambda a: a - 0.5], ids=["add", "sub"])
@pytest.mark.parametrize("engine", ENGINES)
def test_repair_scales_the_number_of_a_sum(engine: str, function: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    program = program_of(function, Input("a", "float32", (None, 4)))
    plan = ScalePlan(literals={program.ops[0].name: -3})
    found = loaded(engine, program, tmp_path, plan=plan)({"a": FEEDS["a_float32"]})["y"]
    np.testing.assert_array_equal(found, FEEDS["a_float32"] + function(torch.zeros(1)).numpy() / 8)


@pytest.mark.parametrize("engine", ENGINES)
def test_arithmetic_of_sizes_is_that_of_integers(engine: str, tmp_path: Path) -> None:
    def sized(a: torch.Tensor) -> torch.Tensor:
        count = a.shape[0]
        return torch.arange((count * 3 + 5) // 2 - count % 2 - 1)

    for count in (1, 2, 5, 8):
        assert_as_in_pytorch(engine, sized, np.zeros((count, 4), np.float32), tmp_path)


SMOOTH = {
    "mish": torch.nn.functional.mish,
    "average of squares": lambda a: torch.nn.functional.avg_pool2d(a, 2),
    "average with a border": lambda a: torch.nn.functional.avg_pool2d(a, 3, 2, 1),
    "average without its border": lambda a: torch.nn.functional.avg_pool2d(a, 3, 1, 1, count_include_pad=False),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMOOTH)
def test_what_other_models_are_made_of_is_computed_as_in_pytorch(engine: str, name: str, tmp_path: Path) -> None:
    array = 8 * np.random.default_rng(0).standard_normal((2, 4, 7, 9), dtype=np.float32)
    program = program_of(SMOOTH[name], Input("a", "float32", (None, 4, None, None)))
    found = loaded(engine, program, tmp_path)({"a": array})["y"]
    np.testing.assert_allclose(found, SMOOTH[name](torch.from_numpy(array)).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_average_of_another_kind_is_refused(engine: str, tmp_path: Path) -> None:
    program = program_of(
        lambda a: torch.nn.functional.avg_pool2d(a, 2, ceil_mode=True), Input("a", "float32", (None, 4, None, None))
    )
    with pytest.raises(ModelError, match="with ceil_mode"):
        loaded(engine, program, tmp_path)
