"""One switch for every kernel, and no allocation of its own that grows with the matrix."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynome_analysis.kernels
from dynome_analysis.kernels.flags import KERNEL_FLAGS, kernel
from dynome_analysis.kernels.multiset import subtract_sorted_multiset
from dynome_analysis.kernels.symmetry import TILE, finish_correlation

FOLDER = Path(dynome_analysis.kernels.__file__).parent


def test_every_kernel_is_compiled_with_the_flags_of_the_package() -> None:
    found = 0
    for path in FOLDER.glob("*.py"):
        if path.name == "flags.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert [ast.unparse(decorator) for decorator in node.decorator_list] == ["kernel"], path.name
                found += 1
    assert found >= 6
    assert not KERNEL_FLAGS["fastmath"]
    assert not KERNEL_FLAGS["parallel"]
    assert KERNEL_FLAGS["nogil"]


def test_a_kernel_compiles_where_nothing_can_be_cached() -> None:
    names: dict[str, Any] = {}
    exec("def double(value):\n    return 2 * value", names)  # a function without a file has nowhere to be cached
    assert kernel(names["double"])(21) == 42


def test_a_multiset_that_is_not_contained_is_noticed_and_nothing_overruns() -> None:
    for removed, left in (
        ([1, 3], [1, 2]),
        ([0.5, 3], [1, 1, 2, 3]),
        ([2, 5], [1, 1, 3]),
        ([9], [1, 1, 2, 3]),
        ([], [1, 1, 2, 3]),
    ):
        values = np.array([1, 1, 2, 3], np.float32)
        found = subtract_sorted_multiset(values, np.array(removed, np.float32))
        assert values[: 4 - found].tolist() == left


@pytest.mark.parametrize("units", [1, 5, TILE, 2 * TILE + 3])
def test_a_product_that_is_not_symmetric_becomes_so(units: int) -> None:
    product = np.random.default_rng(0).normal(size=(units, units)).astype(np.float32)
    upper = np.triu(np.minimum(np.abs(product), 1), 1)
    finish_correlation(product, True, 0, units, np.empty((TILE, TILE), np.float32))
    np.testing.assert_array_equal(product, upper + upper.T)
