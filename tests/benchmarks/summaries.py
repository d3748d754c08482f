"""Summaries of diagrams, against giotto-tda, gudhi and persim."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from gudhi.representations import BettiCurve, Entropy
from persim.persistent_entropy import persistent_entropy
from threadpoolctl import threadpool_limits

from dynome_analysis.persistence.summaries import summarise_deaths, summarise_diagram

from .distances import diagram
from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

NOTE = """\
One thread; number, total, L2, Linf, entropy and a Betti curve on 100 thresholds in one pass of ours, against entropy
and Betti curve alone of each peer."""
GRID = np.linspace(0, 1.5, 100)


def by_numpy(values: NDArray[np.float32]) -> object:
    """Every summary with a line of numpy of its own."""
    shares = values / values.sum(dtype=np.float64)
    held = shares[shares > 0]
    curve = values.size - np.searchsorted(values, GRID, side="right")
    return values.sum(dtype=np.float64), np.linalg.norm(values), values.max(), -(held * np.log2(held)).sum(), curve


def by_gudhi(points: NDArray[np.float64]) -> object:
    """Entropy and Betti curve as gudhi's representations make them."""
    curve = BettiCurve(predefined_grid=GRID).fit_transform([points])
    return Entropy(mode="scalar").fit_transform([points]), curve


def peers(points: NDArray[np.float64]) -> dict[str, Callable[[], object]]:
    """Every library that summarises diagrams; giotto-tda where it is installed."""
    arms: dict[str, Callable[[], object]] = {
        "gudhi": partial(by_gudhi, points),
        "persim, entropy alone": partial(persistent_entropy, [points]),
    }
    try:
        from gtda.diagrams import BettiCurve as GiottoCurve
        from gtda.diagrams import PersistenceEntropy
    except ImportError:
        return arms
    stacked = np.column_stack([points, np.ones(len(points))])[None]
    arms["giotto-tda"] = lambda: (
        PersistenceEntropy().fit_transform(stacked),
        GiottoCurve(n_bins=100).fit_transform(stacked),
    )
    return arms


def rows() -> Iterator[Row]:
    """Diagrams of 500 and 5000 points; the deaths of 2048 units."""
    for points in (500, 5000):
        case = diagram(points, 0)
        with threadpool_limits(1):
            seconds = interleaved({"ours": partial(summarise_diagram, case, thresholds=GRID), **peers(case)})
        yield Row("all summaries of a diagram", f"{points} points", seconds)
    deaths = np.sort(np.random.default_rng(0).random(2_094_082, np.float32))
    with threadpool_limits(1):
        seconds = interleaved(
            {"ours": partial(summarise_deaths, deaths, thresholds=GRID), "numpy": partial(by_numpy, deaths)}
        )
    yield Row("all summaries of deaths", "2048 units", seconds)
