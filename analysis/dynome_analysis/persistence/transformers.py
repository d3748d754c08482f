"""scikit-learn transformers: activations to connectomes, distances to Rips diagrams as giotto-tda lays them out.

Thin shells over functions of numbers, so that a Pipeline may end in giotto-tda's vectorisations or any estimator.
scikit-learn's rules hold: constructors store what they are given, and everything is checked in ``fit``. Importing this
module loads scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.metrics import pairwise_distances
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from dynome_analysis.connectome.correlation import DEAD_TOLERANCE, correlate
from dynome_analysis.persistence.layouts import to_giotto
from dynome_analysis.persistence.metric_rips import metric_diagrams
from dynome_analysis.persistence.rips import rips_distances
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from dynome_analysis.connectome.correlation import Measure
    from dynome_analysis.persistence.rips import Engine

__all__ = ["Connectome", "VietorisRipsPersistence"]

Output = Literal["distance", "weight"]


class _StackTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """What both transformers tell scikit-learn: they take stacks of matrices and need no target."""

    def _more_tags(self) -> dict[str, Any]:
        return {"X_types": ["3darray"], "requires_y": False}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


class Connectome(_StackTransformer):
    """Functional connectomes of snapshots, as distances for persistence or as weights.

    Parameters
    ----------
    measure : str, default "pearson"
    signed : bool, default False
        As for `dynome_analysis.connectome.correlation.correlate`; signed weights make no distances.
    output : {"distance", "weight"}, default "distance"
        ``1 - C`` with diagonal 0, what `VietorisRipsPersistence` and giotto-tda take for ``metric="precomputed"``, or
        ``C`` itself.
    dead_tolerance : float
        As for `correlate`: units that vary less have no correlation, hence distance 1 to every other unit.
    n_jobs : int, optional
        Threads over snapshots, as joblib counts them; None is 1 outside a joblib context.

    Notes
    -----
    METHODS.md section 1. `transform` takes (snapshot, sample, unit), or a list of (sample, unit) whose sizes may
    differ, and returns float32 (snapshot, unit, unit), or a list of matrices where the numbers of units differ. Nothing
    is learned; `fit` checks only. O(sample * unit^2) time per snapshot; 4 * unit^2 bytes per snapshot, all held.
    """

    def __init__(
        self,
        measure: Measure = "pearson",
        signed: bool = False,  # noqa: FBT001, FBT002  # scikit-learn's way
        output: Output = "distance",
        dead_tolerance: float = DEAD_TOLERANCE,
        n_jobs: int | None = None,
    ) -> None:
        self.measure = measure
        self.signed = signed
        self.output = output
        self.dead_tolerance = dead_tolerance
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> Connectome:
        """Check the parameters and that ``X`` is a stack of matrices (sample, unit).

        Raises
        ------
        InvalidArgumentError
            An unknown output, signed distances, or no stack of matrices.
        """
        if self.output not in get_args(Output):
            raise InvalidArgumentError(f"output must be one of {', '.join(get_args(Output))}; got {self.output!r}")
        if self.signed and self.output == "distance":
            raise InvalidArgumentError('signed weights make no distances: use output="weight" or signed=False')
        self.n_snapshots_seen_ = len(_matrices(X, "activations (sample, unit)"))
        return self

    def transform(self, X: Any, y: Any = None) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return one connectome per snapshot, float32 (unit, unit), symmetric; see the class.

        Raises
        ------
        InvalidArgumentError
            No stack of matrices, an unknown measure.
        InvalidDataError
            Activations hold NaN or infinity.
        """
        check_is_fitted(self)
        snapshots = _matrices(X, "activations (sample, unit)")
        threads = Parallel(n_jobs=self.n_jobs, prefer="threads")
        found: list[NDArray[np.float32]] = threads(delayed(self._connectome)(one) for one in snapshots)
        return np.stack(found) if len({one.shape for one in found}) == 1 else found

    def _connectome(self, activations: NDArray[Any]) -> NDArray[np.float32]:
        floating = activations if activations.dtype.kind == "f" else activations.astype(np.float64)
        connectome, _ = correlate(
            floating,
            measure=self.measure,
            signed=self.signed,
            dead_tolerance=self.dead_tolerance,
            threads=None if self.n_jobs in (None, 1) else 1,
        )
        return rips_distances(connectome) if self.output == "distance" else connectome


class VietorisRipsPersistence(_StackTransformer):
    """Vietoris-Rips diagrams in giotto-tda's layout, by our own engine; takes the place of giotto-tda's class.

    Parameters
    ----------
    metric : str or callable, default "euclidean"
        "precomputed" takes distance matrices; anything else is a metric of scikit-learn's ``pairwise_distances``
        between the rows of each matrix.
    metric_params : dict, optional
        Passed to the metric.
    homology_dimensions : sequence of int, default (0, 1)
        Degrees out of 0, 1, 2.
    collapse_edges : bool, default False
        Accepted so that calls may be exchanged; it changes no diagram, and our engine has no use for it.
    coeff : int, default 2
        Prime: homology over the field of so many elements. Other than 2 takes an engine of another library.
    max_edge_length : float, default infinity
        Longer edges do not exist; what is still alive then never dies.
    infinity_values : float, optional
        Death of what never dies; None takes ``max_edge_length``.
    reduced_homology : bool, default True
        Leave out the bar of degree 0 that never dies.
    n_jobs : int, optional
        Threads over samples, as joblib counts them; None is 1 outside a joblib context.
    engine : str, default "auto"
    memory_limit : int, optional
        As for `dynome_analysis.persistence.rips.rips_diagrams`; giotto-tda does not have them.

    Attributes
    ----------
    infinity_values_ : float
        Death that is given to what never dies.

    Notes
    -----
    METHODS.md section 3. The diagrams are giotto-tda's up to the order of points within a degree, which is by (birth,
    death) here; distances are compared in float32 there as here. Left out of giotto-tda's class: vertex weights on the
    diagonal, sparse matrices, plots. Unlike there, a matrix that is not symmetric is refused, since only its upper half
    would count. Cost per sample: O(point^2) for degree 0, the engine's for others; one float32 distance matrix per
    thread beside the input.
    """

    def __init__(
        self,
        metric: str | Callable[..., float] = "euclidean",
        metric_params: Mapping[str, Any] | None = None,
        homology_dimensions: Sequence[int] = (0, 1),
        collapse_edges: bool = False,  # noqa: FBT001, FBT002  # giotto-tda's signature
        coeff: int = 2,
        max_edge_length: float = np.inf,
        infinity_values: float | None = None,
        reduced_homology: bool = True,  # noqa: FBT001, FBT002
        n_jobs: int | None = None,
        engine: Engine = "auto",
        memory_limit: int | None = None,
    ) -> None:
        self.metric = metric
        self.metric_params = metric_params
        self.homology_dimensions = homology_dimensions
        self.collapse_edges = collapse_edges
        self.coeff = coeff
        self.max_edge_length = max_edge_length
        self.infinity_values = infinity_values
        self.reduced_homology = reduced_homology
        self.n_jobs = n_jobs
        self.engine = engine
        self.memory_limit = memory_limit

    def fit(self, X: Any, y: Any = None) -> VietorisRipsPersistence:
        """Check the parameters and that ``X`` is a stack of matrices.

        Parameters
        ----------
        X : floating, shape (sample, point, point) or (sample, point, feature)
            Or a list of matrices whose sizes may differ.
        y : ignored

        Raises
        ------
        InvalidArgumentError
            Degrees out of reach, a field that is none, a length that is NaN, or no stack of matrices.
        """
        degrees = list(self.homology_dimensions)
        if not degrees or any(degree not in (0, 1, 2) for degree in degrees):
            raise InvalidArgumentError(f"homology_dimensions must be degrees out of 0, 1, 2; got {degrees}")
        if self.coeff < 2 or any(self.coeff % divisor == 0 for divisor in range(2, int(self.coeff**0.5) + 1)):
            raise InvalidArgumentError(f"coeff must be a prime number; got {self.coeff}")
        if not self.max_edge_length >= 0:
            raise InvalidArgumentError(f"max_edge_length must be at least 0; got {self.max_edge_length}")
        _matrices(X, "distances (point, point)" if self.metric == "precomputed" else "points (point, feature)")
        self.infinity_values_ = self.max_edge_length if self.infinity_values is None else self.infinity_values
        return self

    def transform(self, X: Any, y: Any = None) -> NDArray[np.float64]:
        """Return float64 (sample, feature, 3), rows [birth, death, degree], padded on the diagonal as giotto-tda pads.

        Raises
        ------
        InvalidArgumentError
            Not square, not symmetric, or vertex weights on the diagonal.
        InvalidDataError
            NaN, or a negative distance.
        MissingExtraError
            The engine is not installed.
        """
        check_is_fitted(self)
        what = "distances (point, point)" if self.metric == "precomputed" else "points (point, feature)"
        samples = _matrices(X, what)
        found = Parallel(n_jobs=self.n_jobs, prefer="threads")(delayed(self._diagrams)(one) for one in samples)
        # Diagrams hold values of float32, and giotto-tda puts this one among them.
        with np.errstate(over="ignore"):  # beyond float32 it is infinite
            infinity = float(np.float32(self.infinity_values_))
        return to_giotto(
            found,
            dimensions=tuple(self.homology_dimensions),
            reduced_homology=self.reduced_homology,
            infinity_values=infinity,
        )

    def _diagrams(self, sample: NDArray[Any]) -> dict[int, NDArray[np.float64]]:
        precomputed = self.metric == "precomputed"
        distances = (
            sample if precomputed else pairwise_distances(sample, metric=self.metric, **(self.metric_params or {}))
        )
        return metric_diagrams(
            distances,
            dimensions=tuple(self.homology_dimensions),
            longest=self.max_edge_length,
            field=self.coeff,
            engine=self.engine,
            memory_limit=self.memory_limit,
        )


def _matrices(X: Any, what: str) -> list[NDArray[Any]]:
    """Return the matrices of a stack, or say that it is none."""
    if type(X).__module__.startswith("scipy.sparse"):
        raise InvalidArgumentError(f"X must be a stack of dense matrices of {what}; sparse ones are not read")
    matrices = [np.asarray(one) for one in X] if isinstance(X, list | tuple) or getattr(X, "ndim", 0) > 0 else []
    if not matrices or any(one.ndim != 2 or 0 in one.shape or one.dtype.kind not in "fiub" for one in matrices):
        shapes = ", ".join(sorted({str(one.shape) for one in matrices})) or "nothing"
        raise InvalidArgumentError(f"X must be a stack of matrices of {what}, at least one; its entries are {shapes}")
    if any(not np.isfinite(one).all() and "unit" in what for one in matrices):
        raise InvalidDataError(f"X must hold finite {what}; it holds NaN or infinity")
    return matrices
