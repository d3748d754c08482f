"""Labelled connectomes of every measure, of some units and between sites equal the numbers, lazily."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import dynome_analysis as dya
from dynome_analysis.connectome.correlation import MEASURES, Measure, correlate
from dynome_analysis.labelled.connectomes import choose_units, site_blocks
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

MakeRecording = Callable[..., Path]
SITES = {"wide": 12, "narrow": 5, "single": 1}


@pytest.fixture
def recording(make_recording: MakeRecording) -> dya.Recording:
    return dya.open_recording(make_recording(epochs=2, sites=SITES))


def refuse(*args: object, **options: object) -> None:
    raise AssertionError("something was computed")


def parameters(labelled: Any, operation: str = "connectomes") -> dict[str, Any]:
    result: dict[str, Any] = json.loads(labelled.attrs["parameters"])[operation]
    return result


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_is_lazy_and_equals_the_numbers(recording: dya.Recording, measure: Measure, signed: bool) -> None:
    with dask.config.set(scheduler=refuse):
        lazy = dya.connectomes(recording, measure=measure, signed=signed)
    expected = [correlate(block, measure=measure, signed=signed) for block in recording.activations().to_numpy()]
    np.testing.assert_array_equal(lazy, [connectome for connectome, _ in expected])
    assert lazy.coords["dead_units"].to_numpy().tolist() == [int(dead.sum()) for _, dead in expected]
    assert parameters(lazy)["measure"] == measure
    assert parameters(lazy)["signed"] is signed


def test_signed_connectomes_have_no_homology(recording: dya.Recording) -> None:
    signed = dya.connectomes(recording, signed=True)
    assert (signed < 0).any()
    with pytest.raises(InvalidDataError, match="must not hold negative weights: take absolute values first"):
        dya.graph_homology(signed).compute()
    xr.testing.assert_equal(abs(signed), dya.connectomes(recording))


def test_edges_within_and_between_sites_make_up_all(recording: dya.Recording) -> None:
    whole = dya.connectomes(recording).compute()
    within = dya.connectomes(recording, edges="within").compute()
    between = dya.connectomes(recording, edges="between").compute()
    same = (whole["site"] == whole["site_"]).to_numpy()
    np.testing.assert_array_equal(within, np.where(same, whole, 0))
    np.testing.assert_array_equal(between, np.where(same, 0, whole))
    assert parameters(between)["edges"] == "between"
    assert dya.graph_homology(between).sizes["birth"] == 17
    xr.testing.assert_equal(between["dead_units"], whole["dead_units"])


def test_chosen_units_are_the_same_in_every_snapshot(recording: dya.Recording) -> None:
    whole = dya.connectomes(recording)
    some = dya.connectomes(recording, units=8, seed=3)
    assert some.shape == (3, 8, 8)
    places = some.coords["unit"].to_numpy()
    assert places.tolist() == some.coords["unit_"].to_numpy().tolist() == sorted(set(places.tolist()))
    np.testing.assert_allclose(some, whole.to_numpy()[:, places][:, :, places], atol=1e-6)
    assert some.coords["site"].to_numpy().tolist() == whole.coords["site"].to_numpy()[places].tolist()
    xr.testing.assert_identical(some.compute(), dya.connectomes(recording, units=8, seed=3).compute())
    others = [dya.connectomes(recording, units=8, seed=seed).coords["unit"].to_numpy() for seed in range(5)]
    assert len({tuple(other) for other in others}) > 1
    assert parameters(some)["units"] == 8
    assert parameters(some)["seed"] == 3
    assert "unit" not in whole.coords


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_units_are_drawn_in_proportion(sizes: list[int], share: float, seed: int) -> None:
    labels = np.repeat([f"site{index}" for index in range(len(sizes))], sizes)
    units = len(sizes) + round(share * (labels.size - len(sizes)))
    chosen = choose_units(labels, units, seed=seed)
    assert chosen.size == np.unique(chosen).size == units
    assert (np.diff(chosen) > 0).all()
    counts = np.array([np.count_nonzero(labels[chosen] == name) for name in dict.fromkeys(labels.tolist())])
    assert counts.min() >= 1
    # Sites that get their one unit although their share is less take those from others, one by one.
    assert (np.abs(counts - units * np.array(sizes) / labels.size) < len(sizes)).all()
    if units * min(sizes) >= labels.size:
        assert (np.abs(counts - units * np.array(sizes) / labels.size) < 1).all()


def test_site_blocks_are_means_of_edges(recording: dya.Recording) -> None:
    with dask.config.set(scheduler=refuse):
        lazy = site_blocks(dya.connectomes(recording, signed=True))
    assert lazy.chunks == ((1,) * 3, (3,), (3,))
    values = np.abs(dya.connectomes(recording).to_numpy().astype(np.float64))
    ends = {"wide": slice(0, 12), "narrow": slice(12, 17), "single": slice(17, 18)}
    for a, rows in ends.items():
        for b, columns in ends.items():
            block = values[:, rows, columns]
            if a == b:
                size = block.shape[1]
                expected = block.sum(axis=(1, 2)) / (size * (size - 1)) if size > 1 else np.full(3, np.nan)
            else:
                expected = block.mean(axis=(1, 2))
            np.testing.assert_allclose(lazy.sel(site=a, site_=b), expected)
    assert lazy.coords["epoch"].to_numpy().tolist() == [0, 1, 2]
    assert lazy.attrs["operation"] == "site_blocks"
    assert parameters(lazy)["measure"] == "pearson"
    xr.testing.assert_identical(
        site_blocks(dya.connectomes(recording, signed=True).compute()).drop_attrs(), lazy.compute().drop_attrs()
    )


def test_site_blocks_of_many_rows_ignore_the_diagonal() -> None:
    random = np.random.default_rng(0)
    matrix = random.random((1, 300, 300))
    labels = random.choice(["a", "b"], 300)
    connectomes = xr.DataArray(matrix, dims=("snapshot", "unit", "unit_"), coords={"site": ("unit", labels)})
    off = matrix[0].copy()
    np.fill_diagonal(off, 0)
    first, second = labels == "a", labels == "b"
    found = site_blocks(connectomes)
    np.testing.assert_allclose(
        found.sel(site="a", site_="a")[0], off[np.ix_(first, first)].sum() / first.sum() / (first.sum() - 1)
    )
    np.testing.assert_allclose(found.sel(site="a", site_="b")[0], matrix[0][np.ix_(first, second)].mean())


def test_diverged_units_are_named_by_their_site_among_the_chosen(make_recording: MakeRecording) -> None:
    def diverge(moment: Any) -> Any:
        broken = moment.probe["narrow"].copy()
        broken[3] = np.nan
        return replace(moment, probe={**moment.probe, "narrow": broken})

    path = make_recording(epochs=0, sites=SITES, change=diverge)
    connectomes = dya.connectomes(dya.open_recording(path), units=4, measure="spearman")
    with pytest.raises(InvalidDataError, match=r"activations of 'narrow' hold NaN .* in 1 of 4 units"):
        connectomes.compute()


def test_what_cannot_be_chosen_is_refused(recording: dya.Recording) -> None:
    with pytest.raises(InvalidArgumentError, match="edges must be one of all, within, between; got 'both'"):
        dya.connectomes(recording, edges="both")  # type: ignore[arg-type]
    for units in (2, 19):
        with pytest.raises(InvalidArgumentError, match=f"number of units, 3 and 18; got {units}"):
            dya.connectomes(recording, units=units)
    with pytest.raises(InvalidArgumentError, match=r"units must be a whole number; got 4\.5"):
        dya.connectomes(recording, units=4.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="a coordinate site on unit"):
        site_blocks(dya.connectomes(recording).drop_vars("site"))
    with pytest.raises(InvalidArgumentError, match="connectomes must be a DataArray"):
        site_blocks(recording.activations())
