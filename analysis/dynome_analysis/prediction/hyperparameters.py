"""The user's hyper-parameters as a table of numbers, and as the identity of a configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["configuration_of", "hyperparameter_table"]

SEED_NAMES = frozenset({"seed", "random_seed", "random_state", "rng"})
DECADE = 10.0


def configuration_of(hyperparameters: Mapping[str, Any]) -> str:
    """Return a text that runs share when they differ in their seed alone.

    Members called ``seed``, ``random_seed``, ``random_state`` or ``rng``, at any depth, are left out. Order does not
    matter.
    """
    flat = _flatten(hyperparameters)
    return json.dumps({name: flat[name] for name in sorted(flat) if not _is_seed(name)}, default=str)


def hyperparameter_table(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return hyper-parameters as numeric columns, one row per run.

    Parameters
    ----------
    runs : sequence of mapping
        Each run's hyper-parameters; nested mappings and lists are flattened to ``optimizer.lr`` and ``widths.0``.

    Returns
    -------
    DataFrame
        float64, no NaN, columns that vary only, seeds left out. A number in every run: itself, and its decimal
        logarithm as ``log10(name)`` where it is positive and spans a decade [O: learning rates are chosen on such
        scales]. Anything else: one column per value, ``name=value``, and a run without the member has the value
        ``absent``.
    """
    import pandas as pd

    flat = [_flatten(run) for run in runs]
    names = sorted({name for run in flat for name in run if not _is_seed(name)})
    columns: dict[str, Any] = {}
    for name in names:
        values = [run.get(name, "absent") for run in flat]
        if all(_is_number(value) for value in values):
            numbers = np.array(values, dtype=np.float64)
            columns[name] = numbers
            if numbers.min() > 0 and numbers.max() >= DECADE * numbers.min():
                columns[f"log10({name})"] = np.log10(numbers)
        else:
            texts = [value if isinstance(value, str) else json.dumps(value, default=str) for value in values]
            for text in sorted(set(texts)):
                columns[f"{name}={text}"] = np.array([float(other == text) for other in texts])
    table = pd.DataFrame(columns, index=range(len(flat)), dtype=np.float64)
    return table.loc[:, table.nunique() > 1]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, member in value.items():
        key = f"{prefix}{name}"
        if isinstance(member, list | tuple):
            member = {str(position): item for position, item in enumerate(member)}
        if isinstance(member, Mapping):
            flat |= _flatten(member, f"{key}.")
        else:
            flat[key] = member
    return flat


def _is_number(value: Any) -> bool:
    """Return whether a member can stand in a column of numbers; an integer beyond float64 cannot."""
    if not isinstance(value, bool | int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_seed(name: str) -> bool:
    return name.rpartition(".")[2] in SEED_NAMES
