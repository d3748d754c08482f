"""Neural persistence: the tree equals scipy's on the explicit graph, the norm its formula, a recording its layers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layer_descriptions as describe
import naive_summaries as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

import dynome_analysis as dya
from dynome_analysis.kernels.bipartite_tree import TILE, transpose
from dynome_analysis.labelled.layer_persistence import _layers, neural_persistence
from dynome_analysis.persistence.layer_persistence import layer_edges, layer_tree, network_persistence, tree_persistence
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

MakeRecording = Callable[..., Path]

unhurried = settings(deadline=None, max_examples=60)


@st.composite
def matrices(draw: st.DrawFn, *, largest: int = 8) -> NDArray[np.float32]:
    """Weights (output, input): distinct, tied, with zeros, all zero, subnormal."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    kind = draw(st.sampled_from(("distinct", "tied", "sparse", "zero", "tiny")))
    values = random.normal(size=shape)
    if kind == "tied":
        values = random.choice([-1.0, -0.5, 0.5, 1.0], size=shape)
    elif kind == "sparse":
        values *= random.random(shape) < 0.3
    elif kind == "zero":
        values[:] = 0
    elif kind == "tiny":
        values *= 1e-42
    return values.astype(np.float32)


def tree_of(weight: NDArray[Any]) -> NDArray[np.float32]:
    return layer_tree(layer_edges(weight))


@unhurried
@given(matrices())
def test_the_tree_equals_the_twins(weight: NDArray[np.float32]) -> None:
    outputs, inputs = weight.shape
    before = weight.copy()
    edges = [(i, outputs + j, float(abs(weight[i, j]))) for i in range(outputs) for j in range(inputs)]
    tree = tree_of(weight)
    assert tree.dtype == np.float32
    np.testing.assert_array_equal(tree, naive.spanning_weights(edges, outputs + inputs))
    np.testing.assert_array_equal(weight, before)
    random = np.random.default_rng(0)
    np.testing.assert_array_equal(tree, tree_of(random.permutation(random.permutation(weight), axis=1)))
    np.testing.assert_array_equal(tree, tree_of(-weight.T))


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (130, 1), (64, 64), (65, 129), (150, 40)])
@pytest.mark.parametrize("levels", [0, 3])
def test_the_tree_equals_scipys_across_blocks(shape: tuple[int, int], levels: int) -> None:
    """scipy drops edges of weight 0, so weights are at least 1 here; ``levels`` makes ties."""
    random = np.random.default_rng(sum(shape))
    weight = (1 + (random.integers(0, levels, shape) if levels else random.random(shape))).astype(np.float32)
    outputs, inputs = shape
    square = np.zeros((outputs + inputs, outputs + inputs))
    square[:outputs, outputs:] = -weight
    expected = np.sort(-minimum_spanning_tree(csr_array(square)).data)
    np.testing.assert_array_equal(tree_of(weight), expected)


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (33, 64), (5, 70)])
def test_a_rectangle_is_transposed_tile_by_tile(shape: tuple[int, int]) -> None:
    matrix = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    out = np.empty(shape[::-1], np.int32)
    transpose(matrix, np.empty((TILE, TILE), np.int32), out)
    np.testing.assert_array_equal(out, matrix.T)


@unhurried
@given(matrices(), st.sampled_from([1.0, 1.5, 2.0, 4.0]))
def test_persistence_equals_its_formula_and_stays_within_its_bounds(weight: NDArray[np.float32], order: float) -> None:
    tree = tree_of(weight)
    largest = float(np.abs(weight).max())
    found = tree_persistence(tree, largest=largest, order=order)
    if largest == 0:
        assert np.isnan(found)
        return
    assert found == pytest.approx(naive.neural_persistence(tree.tolist(), largest, order), rel=1e-12, abs=1e-15)
    assert 0 <= found <= 1
    size = tree.size
    assert tree_persistence(tree, largest=largest, order=order, normalise=False) == pytest.approx(
        found * size ** (1 / order)
    )
    unpaired = tree_persistence(tree, largest=largest, order=order, count_unpaired=True)
    assert unpaired**order == pytest.approx(found**order + 1 / size, rel=1e-9)
    assert tree_persistence(tree, largest=largest, order=np.inf) == 1 - tree[0] / np.float64(largest)
    assert found == pytest.approx(tree_persistence(tree * np.float32(4), largest=4 * largest, order=order), rel=1e-6)


def test_a_layer_by_hand() -> None:
    """The tree of [[4, 2], [1, 3]] is 4, 3, 2; over 4: persistences 0, 1/4, 1/2."""
    tree = tree_of(np.array([[4.0, -2.0], [1.0, -3.0]]))
    assert tree.tolist() == [2, 3, 4]
    assert tree_persistence(tree, largest=4.0) == pytest.approx((1 / 16 + 1 / 4) ** 0.5 / 3**0.5)
    assert tree_persistence(tree, largest=4.0, normalise=False, count_unpaired=True) == pytest.approx((21 / 16) ** 0.5)
    assert tree_persistence(tree_of(np.full((3, 2), -0.5)), largest=0.5) == 0


def test_scales_of_a_network() -> None:
    trees = [np.array([1.0, 2.0]), np.array([0.0, 0.0, 4.0]), np.zeros(2)]
    np.testing.assert_allclose(network_persistence(trees), [tree_persistence(tree, largest=4.0) for tree in trees])
    own = network_persistence(trees, scale="layer", order=1)
    assert own[:2].tolist() == [0.25, pytest.approx(2 / 3)]
    assert np.isnan(own[2])
    assert np.isnan(network_persistence([np.zeros(2)])).all()


def test_a_convolutions_edges_are_norms_of_kernel_slices_and_groups_stand_apart() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 3, 3, 2)).astype(np.float32)
    edges = layer_edges(weight)
    assert edges.shape == (1, 4, 3)
    np.testing.assert_allclose(edges[0], np.sqrt((weight.astype(float) ** 2).sum(axis=(2, 3))), rtol=1e-6)
    grouped = layer_edges(weight, groups=2)
    assert grouped.shape == (2, 2, 3)
    pairs = [(2 * g + i, 4 + 3 * g + j, float(grouped[g, i, j])) for g in range(2) for i in range(2) for j in range(3)]
    np.testing.assert_array_equal(layer_tree(grouped), naive.spanning_weights(pairs, 10))
    assert layer_tree(grouped)[0] == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layer_edges(np.zeros(3)), InvalidArgumentError, r"weight must be floating.*shape \(3,\)"),
        (lambda: layer_edges(np.zeros((3, 2), int)), InvalidArgumentError, "int64"),
        (lambda: layer_edges(np.zeros((3, 2, 1)), groups=2), InvalidArgumentError, "groups=2"),
        (lambda: layer_edges(np.array([[1e39]])), InvalidDataError, "must be finite"),
        (lambda: layer_edges(np.array([[np.nan]])), InvalidDataError, "NaN or infinity"),
        (lambda: tree_persistence(np.ones(2), largest=1, order=0.5), InvalidArgumentError, "order must be.*got 0.5"),
        (lambda: tree_persistence(np.ones(2), largest=0.5), InvalidArgumentError, "largest must be no less.*got 0.5"),
        (lambda: network_persistence([], scale="x"), InvalidArgumentError, "network, layer; got 'x'"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_layer_is_said(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# Labelled


def test_every_snapshot_of_a_recording(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=2))
    calls: list[tuple[str, int, int]] = []
    found = neural_persistence(recording, progress=lambda *report: calls.append(report))
    assert calls[-1][0] == "neural persistence"
    names = ["hidden1.linear", "hidden2.linear", "head"]
    assert found["layer"].to_numpy().tolist() == names
    assert found["vertices"].to_numpy().tolist() == [22, 20, 12]
    assert found["epoch"].to_numpy().tolist() == [0, 1, 2]
    assert json.loads(found.attrs["left_out"]) == []
    weights = [[recording.weight(f"{name}.weight").to_numpy()[position] for name in names] for position in range(3)]
    for position, layers in enumerate(weights):
        trees = [tree_of(weight) for weight in layers]
        np.testing.assert_array_equal(found["layer_persistence"][position], network_persistence(trees))
    np.testing.assert_allclose(found["neural_persistence"], found["layer_persistence"].mean("layer"))
    options: dict[str, Any] = {"order": np.inf, "scale": "layer", "normalise": False, "count_unpaired": True}
    other = neural_persistence(recording, **options)
    expected = [network_persistence([tree_of(weight) for weight in layers], **options) for layers in weights]
    np.testing.assert_array_equal(other["layer_persistence"], expected)
    assert json.loads(other.attrs["parameters"])["neural_persistence"]["order"] == "inf"


def test_a_diverged_snapshot_is_marked(make_recording: MakeRecording) -> None:
    def diverge(moment: Any) -> Any:
        if moment.epoch != 1:
            return moment
        return replace(moment, weights={**moment.weights, "head.weight": moment.weights["head.weight"] * np.nan})

    found = neural_persistence(dya.open_recording(make_recording(epochs=2, change=diverge)))
    assert found["diverged"].to_numpy().tolist() == [False, True, False]
    assert np.isnan(found["layer_persistence"][1]).all()
    assert np.isfinite(found["neural_persistence"][[0, 2]]).all()


def test_layers_of_many_kinds() -> None:
    """Convolutions know their groups, shared weights count once, and what has no rule is listed."""
    description = describe.Description()
    shape = description.conv(6, 3, reads=[4, 8, 8], groups=2, name="stem")
    description.add("Embedding", [5], reads=[5], weight=[9, 5], name="words")
    description.add("LayerNorm", [5], reads=[5], weight=[5], name="norm")
    description.linears([7], reads=shape)
    description.add("Linear", [7], reads=[7], weight=[7, 7], name="again")
    description.add("Linear", [7], reads=[7], weight=[7, 7], name="again", call=1)
    description.parameters.append(
        {"name": "tied.weight", "shape": [7, 7], "dtype": "float32", "alias_of": "again.weight"}
    )
    description.layers.append({**description.layers[-1], "module": "tied", "parameters": {"weight": "tied.weight"}})
    recorded = {entry["name"] for entry in description.parameters if not entry["alias_of"]}

    def layers(weights: set[str]) -> Any:
        manifest = SimpleNamespace(run={"model": description.model()}, weights=weights)
        return _layers(SimpleNamespace(manifest=manifest, path="run"))  # type: ignore[arg-type]

    found, left_out = layers(recorded)
    assert [(one.name, one.groups, one.vertices) for one in found] == [
        ("stem", 2, 10),
        ("fc1", 1, 223),
        ("again", 1, 14),
    ]
    assert left_out == ["words.weight"]
    with pytest.raises(InvalidDataError, match=r"run: the weight 'stem.weight' was not recorded"):
        layers(recorded - {"stem.weight"})
    description.layers = [layer for layer in description.layers if layer["type"] in ("Embedding", "LayerNorm")]
    with pytest.raises(InvalidDataError, match="no linear layer or convolution"):
        layers(recorded)
    description.layers = []
    with pytest.raises(InvalidDataError, match="holds no layer graph"):
        layers(recorded)


def test_a_recording_without_weights_is_refused(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=1, weights=False))
    with pytest.raises(InvalidDataError, match=r"'hidden1.linear.weight' was not recorded; record with weights="):
        neural_persistence(recording)
    with pytest.raises(InvalidArgumentError, match="order must be at least 1"):
        neural_persistence(recording, order=0)
    with pytest.raises(InvalidArgumentError, match="scale must be one of network, layer"):
        neural_persistence(recording, scale="global")  # type: ignore[arg-type]
