"""Our transformers take giotto-tda's place: equal diagrams, equal features behind them, scikit-learn's own rules."""

import importlib.util
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import gudhi.representations
import numpy as np
import pytest
from connectome_strategies import activations
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ripser import ripser
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.persistence.layouts import from_giotto, to_giotto
from dynome_analysis.persistence.metric_rips import metric_diagrams
from dynome_analysis.persistence.rips import Engine, rips_diagrams, rips_distances
from dynome_analysis.persistence.transformers import Connectome, VietorisRipsPersistence
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

Stack = NDArray[np.floating[Any]]

unhurried = settings(deadline=None, max_examples=40)
# giotto-tda is installed in one of the two environments; ripser.py, by hand, is the witness in both.
GIOTTO = importlib.util.find_spec("gtda") is not None
OPTIONS = [
    {},
    {"reduced_homology": False},
    {"homology_dimensions": (1,)},
    {"homology_dimensions": [0, 1, 2]},
    {"max_edge_length": 0.4},
    {"max_edge_length": 0.4, "infinity_values": 0.75},
    {"max_edge_length": 0.3, "reduced_homology": False, "collapse_edges": True, "n_jobs": 2},
]


@pytest.fixture(scope="module")
def snapshots() -> NDArray[np.float64]:
    """Activations (snapshot, sample, unit) with a dead unit and two equal ones."""
    random = np.random.default_rng(7)
    values = np.maximum(random.normal(size=(4, 40, 4)) @ random.normal(size=(4, 4, 22)), 0)
    values[:, :, 3] = 0
    values[:, :, 5] = values[:, :, 6]
    return values


@pytest.fixture(scope="module")
def distances(snapshots: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(Connectome().fit_transform(snapshots))


def in_order(array: Stack) -> NDArray[np.float64]:
    """Rows sorted by (degree, birth, death), which is all that two engines may differ in."""
    return np.stack([one[np.lexsort((one[:, 1], one[:, 0], one[:, 2]))] for one in array])


def by_ripser(matrix: Stack, degrees: tuple[int, ...], longest: float = np.inf) -> dict[int, NDArray[np.float64]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ripser(matrix, maxdim=max(degrees), thresh=longest, distance_matrix=True)["dgms"]
    proper = {degree: found[degree][found[degree][:, 1] > found[degree][:, 0]].astype(np.float64) for degree in degrees}
    return {degree: points[np.lexsort((points[:, 1], points[:, 0]))] for degree, points in proper.items()}


# Diagrams


@unhurried
@given(activations(largest=12), st.sampled_from([np.inf, 0.75, 0.25]))
def test_distances_of_any_scale_equal_ripser(values: NDArray[np.float32], longest: float) -> None:
    """Ties, duplicated and dead units; the longest edge scales with the distances."""
    for scale in (1.0, 2.0**30, 2.0**-30):
        matrix = rips_distances(correlate(values)[0]) * np.float32(scale)
        found = metric_diagrams(matrix, longest=longest * scale)
        assert found[0].shape == (len(matrix), 2)
        if len(matrix) > 3:
            for degree, points in by_ripser(matrix, (0, 1), longest * scale).items():
                np.testing.assert_array_equal(found[degree][found[degree][:, 1] > found[degree][:, 0]], points)


def test_connectomes_have_the_diagrams_of_the_library(distances: NDArray[np.float32], snapshots: Stack) -> None:
    connectomes = Connectome(output="weight").fit_transform(snapshots)
    for matrix, connectome in zip(distances, connectomes, strict=True):
        expected = rips_diagrams(connectome, dimensions=(0, 1, 2))
        for degree, points in metric_diagrams(matrix, dimensions=(0, 1, 2)).items():
            np.testing.assert_array_equal(points, expected[degree])


@pytest.mark.parametrize("engine", ["dynome", "ripser"])
def test_edges_that_do_not_exist(distances: NDArray[np.float32], engine: Engine) -> None:
    """Two parts without an edge between them: two bars never die; an engine sees finite numbers only."""
    apart = distances[0].copy()
    apart[:9, 9:] = apart[9:, :9] = np.inf
    found = metric_diagrams(apart, engine=engine)
    assert np.isinf(found[0][:, 1]).sum() == 2
    separate = [metric_diagrams(part) for part in (apart[:9, :9], apart[9:, 9:])]
    for degree in (0, 1):
        merged = np.concatenate([one[degree] for one in separate])
        np.testing.assert_array_equal(found[degree], merged[np.lexsort((merged[:, 1], merged[:, 0]))])
    assert (
        VietorisRipsPersistence(metric="precomputed", homology_dimensions=(0,)).fit_transform(apart[None]).shape[1] > 1
    )


@pytest.mark.parametrize("engine", ["dynome", "ripser"])
def test_the_longest_edge_itself_exists(engine: Engine) -> None:
    """A square of side 1 and diagonal 2: a loop that the diagonals fill, if they are not too long."""
    ring = np.array([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]], np.float64)
    for longest, deaths, loops in ((2, [1, 1, 1], [[1, 2]]), (1.5, [1, 1, 1], [[1, np.inf]]), (0.5, [np.inf] * 3, [])):
        found = metric_diagrams(ring, longest=longest, engine=engine)
        assert found[0][:3, 1].tolist() == deaths
        assert found[1].tolist() == loops
    assert metric_diagrams(ring, longest=1.0, engine=engine)[0][:3, 1].tolist() == [1, 1, 1]


def test_a_stack_is_laid_out_as_giottos(distances: NDArray[np.float32]) -> None:
    found = VietorisRipsPersistence(metric="precomputed").fit_transform(distances)
    expected = to_giotto([by_ripser(matrix, (0, 1)) for matrix in distances])
    np.testing.assert_array_equal(found, expected)
    for one, matrix in zip(from_giotto(found, units=22), distances, strict=True):
        whole = metric_diagrams(matrix)
        np.testing.assert_array_equal(one[0], whole[0])
        np.testing.assert_array_equal(one[1], whole[1])


def test_negative_zeros_are_lengths_of_zero() -> None:
    weights = np.array([[1.0, 1.0, 0.5], [1.0, 1.0, 0.25], [0.5, 0.25, 1.0]])
    lengths = -np.log(weights)  # -0.0 between the first two, and on the diagonal
    assert np.signbit(lengths[0, 1])
    assert metric_diagrams(lengths)[0][:, 1].tolist() == [0, np.float32(np.log(2)), np.inf]


@pytest.mark.parametrize("longest", [-1.0, np.nan])
def test_a_longest_edge_must_be_a_length(longest: float) -> None:
    with pytest.raises(InvalidArgumentError, match="longest must be a length of at least 0"):
        metric_diagrams(np.zeros((3, 3)), longest=longest)


def test_lengths_beyond_float32_are_infinite(distances: NDArray[np.float32]) -> None:
    plain = VietorisRipsPersistence(metric="precomputed").fit_transform(distances)
    found = VietorisRipsPersistence(metric="precomputed", max_edge_length=1e300).fit_transform(distances)
    np.testing.assert_array_equal(found, plain)


def test_points_and_sizes_may_differ(distances: NDArray[np.float32]) -> None:
    random = np.random.default_rng(0)
    clouds = [random.normal(size=(count, 3)) for count in (6, 12, 1)]
    found = VietorisRipsPersistence(homology_dimensions=(0,)).fit_transform(clouds)
    assert found.shape == (3, 11, 3)
    assert (found[:, :, 1] > 0).sum(axis=1).tolist() == [5, 11, 0]
    blocks = VietorisRipsPersistence(metric="cityblock", metric_params={"n_jobs": 1}).fit_transform(clouds[:2])
    apart = np.abs(clouds[0][:, None] - clouds[0][None]).sum(axis=2)
    np.fill_diagonal(apart, 0)
    np.testing.assert_allclose(from_giotto(blocks)[0][0], metric_diagrams(apart)[0], rtol=1e-6)


if GIOTTO:
    from gtda.diagrams import Amplitude, BettiCurve, PersistenceEntropy, PersistenceImage, PersistenceLandscape
    from gtda.homology import VietorisRipsPersistence as Giotto

    VECTORISATIONS = [
        PersistenceEntropy(),
        PersistenceEntropy(normalize=True),
        Amplitude("wasserstein"),
        Amplitude("landscape"),
        BettiCurve(n_bins=20),
        PersistenceLandscape(n_layers=2, n_bins=20),
        PersistenceImage(sigma=0.05, n_bins=8),
    ]

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("metric", ["precomputed", "euclidean"])
    def test_both_classes_give_equal_diagrams(
        distances: NDArray[np.float32], snapshots: NDArray[np.float64], metric: str, options: dict[str, Any]
    ) -> None:
        """Exactly where both start from the same distances; sums of squares differ in their last bits."""
        stack = distances.astype(np.float64) if metric == "precomputed" else snapshots[:, :12, :3] / 8
        ours = VietorisRipsPersistence(metric=metric, **options)
        theirs = Giotto(metric=metric, **options)
        found, expected = ours.fit_transform(stack), theirs.fit_transform(stack)
        np.testing.assert_allclose(
            in_order(found), in_order(expected), rtol=0, atol=0 if metric == "precomputed" else 1e-6
        )
        assert ours.infinity_values_ == theirs.infinity_values_
        assert set(theirs.get_params()) == set(ours.get_params()) - {"engine", "memory_limit"}

    def test_both_classes_know_edges_that_do_not_exist(distances: NDArray[np.float32]) -> None:
        apart = distances.copy()
        apart[:, :9, 9:] = apart[:, 9:, :9] = np.inf
        found = [
            one(metric="precomputed", infinity_values=2.0).fit_transform(apart)
            for one in (VietorisRipsPersistence, Giotto)
        ]
        np.testing.assert_array_equal(*map(in_order, found))

    @pytest.mark.parametrize("coeff", [3, 7])
    def test_both_classes_know_other_fields(distances: NDArray[np.float32], coeff: int) -> None:
        found = [
            one(metric="precomputed", coeff=coeff).fit_transform(distances) for one in (VietorisRipsPersistence, Giotto)
        ]
        np.testing.assert_array_equal(*map(in_order, found))

    @pytest.mark.parametrize("vectorisation", VECTORISATIONS, ids=str)
    def test_vectorisations_follow_in_a_pipeline(snapshots: NDArray[np.float64], vectorisation: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # giotto-tda calls np.product
            ours, theirs = (
                make_pipeline(Connectome(), persistence(metric="precomputed"), clone(vectorisation)).fit_transform(
                    snapshots
                )
                for persistence in (VietorisRipsPersistence, Giotto)
            )
        assert ours.shape[0] == 4
        assert np.ptp(ours) > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)

    def test_vectorisations_take_the_librarys_own_diagrams(snapshots: NDArray[np.float64]) -> None:
        """Without any transformer of ours: diagrams of rips_diagrams through the layout."""
        stack = to_giotto([rips_diagrams(correlate(one)[0]) for one in snapshots])
        expected = make_pipeline(Connectome(), Giotto(metric="precomputed")).fit_transform(snapshots)
        for features in (PersistenceEntropy(), Amplitude("bottleneck"), BettiCurve()):
            np.testing.assert_allclose(features.fit_transform(stack), features.fit_transform(expected), rtol=1e-12)


def test_gudhis_representations_follow_in_a_pipeline(snapshots: NDArray[np.float64]) -> None:
    def loops(array: Stack) -> list[NDArray[np.float64]]:
        return [one[1] for one in from_giotto(array)]

    features = gudhi.representations.Landscape(num_landscapes=2, resolution=10, sample_range=[0, 1])
    rips = VietorisRipsPersistence(metric="precomputed")
    pipeline = make_pipeline(Connectome(), rips, FunctionTransformer(loops), features, Ridge())
    pipeline.fit(snapshots, np.arange(4.0))
    found = pipeline[:-1].transform(snapshots)
    expected = features.fit_transform([rips_diagrams(correlate(one)[0])[1] for one in snapshots])
    np.testing.assert_allclose(found, expected)
    assert pipeline.predict(snapshots).shape == (4,)


# Connectomes


def test_connectomes_equal_the_librarys(snapshots: NDArray[np.float64], distances: NDArray[np.float32]) -> None:
    weights = Connectome(output="weight", n_jobs=2).fit_transform(snapshots)
    for weight, distance, values in zip(weights, distances, snapshots, strict=True):
        np.testing.assert_array_equal(weight, correlate(values)[0])
        np.testing.assert_array_equal(distance, rips_distances(weight))
    assert (distances[:, 3, 4] == 1).all()  # dead
    ragged = Connectome().fit_transform([snapshots[0], snapshots[1][:, :5]])
    assert [one.shape for one in ragged] == [(22, 22), (5, 5)]
    counts = (snapshots > 0).astype(int)
    np.testing.assert_array_equal(Connectome().fit_transform(counts), Connectome().fit_transform(counts.astype(float)))


# scikit-learn's rules


CHECKS = [
    "check_parameters_default_constructible",
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_mixin_order",
]


@pytest.mark.parametrize("estimator", [Connectome(), VietorisRipsPersistence()], ids=str)
@pytest.mark.parametrize("name", [name for name in CHECKS if hasattr(estimator_checks, name)])
def test_scikit_learns_own_checks(estimator: Any, name: str) -> None:
    """Those that need no two-dimensional X; older versions lack some."""
    getattr(estimator_checks, name)(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize(
    "estimator", [Connectome(n_jobs=2), VietorisRipsPersistence(homology_dimensions=(0,))], ids=str
)
def test_estimators_are_cloned_pickled_and_fitted_first(estimator: Any, snapshots: NDArray[np.float64]) -> None:
    before = dict(estimator.get_params())
    with pytest.raises(Exception, match="not fitted yet"):
        clone(estimator).transform(snapshots)
    fitted = clone(estimator).fit(snapshots)
    assert fitted.get_params() == before
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(snapshots), fitted.transform(snapshots))
    np.testing.assert_array_equal(clone(estimator).fit_transform(snapshots), fitted.transform(snapshots))
    changed = clone(estimator).set_params(n_jobs=1)
    np.testing.assert_array_equal(
        changed.fit(snapshots).transform(snapshots[:2])[0], fitted.transform(snapshots[:2])[0]
    )


def square(*values: float) -> NDArray[np.float64]:
    """One 2 x 2 matrix in a stack."""
    return np.array(values, np.float64).reshape(1, 2, 2)


def rips(**options: Any) -> VietorisRipsPersistence:
    return VietorisRipsPersistence(**{"metric": "precomputed", **options})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rips(homology_dimensions=(0, 3)).fit(square(0, 1, 1, 0)), InvalidArgumentError, "0, 1, 2; got"),
        (lambda: rips(homology_dimensions=()).fit(square(0, 1, 1, 0)), InvalidArgumentError, "homology_dimensions"),
        (lambda: rips(coeff=4).fit(square(0, 1, 1, 0)), InvalidArgumentError, "coeff must be a prime number; got 4"),
        (lambda: rips(max_edge_length=np.nan).fit(square(0, 1, 1, 0)), InvalidArgumentError, "max_edge_length"),
        (lambda: rips().fit(csr_array(np.eye(2))), InvalidArgumentError, "sparse ones are not read"),
        (lambda: rips().fit(np.zeros((2, 2))), InvalidArgumentError, r"stack of matrices of distances.*\(2,\)"),
        (lambda: rips().fit([]), InvalidArgumentError, "at least one"),
        (lambda: rips().fit(3), InvalidArgumentError, "entries are nothing"),
        (lambda: rips().fit_transform(np.zeros((1, 2, 3))), InvalidArgumentError, r"square.*got shape \(2, 3\)"),
        (lambda: rips().fit_transform(square(1, 1, 1, 0)), InvalidArgumentError, "diagonal 0: vertex weights"),
        (lambda: rips().fit_transform(square(0, 1, 2, 0)), InvalidArgumentError, "exactly symmetric"),
        (lambda: rips().fit_transform(square(0, -1, -1, 0)), InvalidDataError, "must not be negative or NaN"),
        (lambda: rips().fit_transform(square(0, np.nan, 1, 0)), InvalidDataError, "must not be negative or NaN"),
        (lambda: Connectome(output="x").fit(square(0, 1, 1, 0)), InvalidArgumentError, "one of distance, weight"),  # type: ignore[arg-type]
        (lambda: Connectome(signed=True).fit(square(0, 1, 1, 0)), InvalidArgumentError, "signed weights make no"),
        (lambda: Connectome().fit(square(0, np.inf, 1, 0)), InvalidDataError, r"finite activations \(sample, unit\)"),
        (lambda: Connectome().fit([np.array([["a"]])]), InvalidArgumentError, "stack of matrices of activations"),
        (lambda: Connectome(measure="x").fit_transform(square(0, 1, 1, 0)), InvalidArgumentError, "measure must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_transformed_is_said(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
