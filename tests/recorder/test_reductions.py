"""Reductions: each against a plain loop, what they allow to vary, and the text that builds them again."""

from __future__ import annotations

import math

import naive_reductions as naive
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_training import Convolution, make_recorder

from dynome_recorder import FingerprintError, InvalidArgumentError, InvalidDataError, Probe, Recorder
from dynome_recorder.capture.reductions import SiteLayout, check_reductions, layout_site
from dynome_recorder.capture.steps import Named, Position, Subset, parse_reduction, position, reduction_text, subset
from dynome_recorder.tracing.sites import Site

NAMES = ("spatial_mean", "max", "flatten", "tokens", "mean", "last", "first")
LENGTHS = st.integers(1, 4)


def lay_out(shape, reduction, *, native: str = "float64", dtype: str = "native", output=()) -> SiteLayout:
    return layout_site(
        Site("block", "block", 0, "Block", output=output),
        output_shape=tuple(shape),
        native_dtype=native,
        reduction=reduction,
        dtype=dtype,
    )


def twin(values: np.ndarray, name: str, keep=None, index: int = 0) -> list[list[float]]:
    return {
        "spatial_mean": lambda: naive.spatial(values, naive.mean, keep),
        "max": lambda: naive.spatial(values, naive.largest, keep),
        "flatten": lambda: naive.flatten(values, keep),
        "tokens": lambda: naive.tokens(values, keep),
        "mean": lambda: naive.mean_tokens(values, keep),
        "last": lambda: naive.one_token(values, -1, keep),
        "first": lambda: naive.one_token(values, 0, keep),
        "position": lambda: naive.one_token(values, index, keep),
    }[name]()


def numbers(draw_seed: int, shape) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw_seed), dtype=torch.float64)
    values.reshape(-1)[::7] = float("nan") if draw_seed % 3 == 0 else 0.0
    values.reshape(-1)[3::11] = float("inf") if draw_seed % 4 == 0 else -1.0
    return values


def assert_rows(found: torch.Tensor, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(found.double().numpy(), np.asarray(expected), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    name=st.sampled_from((*NAMES, "position")),
    shape=st.lists(LENGTHS, min_size=2, max_size=4),
    samples=st.integers(0, 3),
    seed=st.integers(0, 99),
    last=st.booleans(),
)
def test_every_reduction_equals_its_plain_loop(
    data, name: str, shape: list[int], samples: int, seed: int, last
) -> None:
    index = data.draw(st.integers(0, math.prod(shape[:-1]) - 1)) if name == "position" else 0
    layout = lay_out(shape, position(index) if name == "position" else name)
    values = numbers(seed, (samples, *shape))
    if last and len(shape) > 2:
        form = torch.channels_last if len(shape) == 3 else torch.channels_last_3d
        values = values.contiguous(memory_format=form)
    found = layout.apply(layout.take(values, samples=samples))
    assert found.shape == (samples * layout.rows_per_sample, layout.units)
    if samples:
        assert_rows(found, twin(values.numpy(), name, index=index))
    assert layout.bytes_per_sample == 8 * layout.units * layout.rows_per_sample


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(NAMES),
    shape=st.lists(LENGTHS, min_size=2, max_size=4),
    units=st.one_of(st.none(), st.integers(1, 9)),
    kept=st.one_of(st.none(), st.integers(1, 9)),
    seed=st.integers(0, 50),
)
def test_subsets_keep_the_seeded_units_and_positions(name: str, shape: list[int], units, kept, seed: int) -> None:
    if name == "flatten" and len(shape) == 2:
        kept = None
    features_last = name in ("tokens", "mean", "last", "first")
    available = math.prod(shape[:-1] if features_last else shape[1:])
    steps = [
        *([subset(positions=kept, seed=seed)] if kept else []),
        name,
        *([subset(units=units, seed=seed + 1)] if units else []),
    ]
    layout = lay_out(shape, steps)
    values = numbers(seed, (2, *shape))
    keep = naive.seeded_choice(available, kept, seed) if kept else None
    rows = twin(values.numpy(), name, keep)
    assert (layout.chosen("positions") is None) == (keep is None)
    if keep is not None:
        assert layout.chosen("positions").tolist() == keep
    if units:
        choice = naive.seeded_choice(len(rows[0]), units, seed + 1)
        assert layout.chosen("units").tolist() == choice
        rows = naive.take_units(rows, choice)
    found = layout.apply(values)
    assert found.shape == (2 * layout.rows_per_sample, layout.units)
    assert_rows(found, rows)
    again = lay_out(shape, layout.reduction)
    assert again == layout, "the text in run.json makes the same layout"


STEPS = st.one_of(
    st.sampled_from(NAMES).map(Named),
    st.integers(0, 999).map(Position),
)
SUBSETS = st.builds(Subset, st.just("units"), st.integers(1, 999), st.integers(0, 2**40))


@given(first=st.booleans(), kind=STEPS, last=st.one_of(st.none(), SUBSETS))
def test_the_text_is_read_back(first: bool, kind, last) -> None:
    steps = (*((subset(positions=3, seed=5),) if first else ()), kind, *((last,) if last else ()))
    assert parse_reduction(reduction_text(steps)) == steps
    assert parse_reduction([str(step) for step in steps]) == steps
    assert parse_reduction(list(steps)) == steps


def test_defaults_and_texts() -> None:
    assert lay_out((3, 4, 5), None).reduction == "spatial_mean"
    assert lay_out((3, 4, 5), subset(units=2)).reduction == "spatial_mean then subset(units=2, seed=0)"
    assert lay_out((3, 4, 5), subset(positions=2)).reduction == "subset(positions=2, seed=0) then spatial_mean"
    assert lay_out((7,), "max").reduction is None, "(sample, unit) has no positions"
    assert lay_out((7,), [subset(positions=2), "tokens", subset(units=3)]).reduction == "subset(units=3, seed=0)"
    assert lay_out((), "flatten").units == 1
    assert str(parse_reduction("subset(units=4)")[0]) == "subset(units=4, seed=0)"


def test_units_are_chosen_where_there_are_no_positions() -> None:
    values = torch.arange(10.0, dtype=torch.float64).reshape(2, 5)
    assert lay_out((5,), subset(units=9)).apply(values).equal(values)
    assert lay_out((5,), subset(units=2, seed=3)).apply(values).tolist() == naive.take_units(
        values.tolist(), naive.seeded_choice(5, 2, 3)
    )
    assert lay_out((), subset(units=2)).apply(torch.ones(3, dtype=torch.float64)).shape == (3, 1)


def test_one_seed_chooses_the_same_units_forever() -> None:
    # These are in recordings: another numpy or torch must not move them.
    assert lay_out((1000,), subset(units=6, seed=0)).chosen("units").tolist() == [11, 269, 403, 850, 855, 921]
    assert lay_out((50, 3), [subset(positions=4, seed=7), "tokens"]).chosen("positions").tolist() == [6, 24, 32, 37]


@pytest.mark.parametrize(
    ("reduction", "shape", "fits", "does_not"),
    [
        ("mean", (5, 8), [(4, 9, 8), (4, 1, 8)], [(4, 5, 7), (4, 0, 8), (3, 5, 8), (4, 8), (4, 5, 5, 8)]),
        ("last", (5, 8), [(4, 2, 8)], [(4, 2, 7)]),
        ("first", (5, 8), [(4, 2, 8)], [(4, 2, 7)]),
        ("position(2)", (5, 8), [(4, 3, 8), (4, 9, 8)], [(4, 2, 8), (4, 5, 9)]),
        ("position(2)", (2, 3, 8), [(4, 2, 3, 8)], [(4, 3, 3, 8)]),
        ("spatial_mean", (3, 6, 6), [(4, 3, 9, 1)], [(4, 4, 6, 6), (4, 3, 6, 0)]),
        ("max", (3, 6), [(4, 3, 9)], [(4, 2, 6)]),
        ("flatten", (3, 6), [(4, 3, 6)], [(4, 6, 3)]),
        ("tokens", (5, 8), [(4, 5, 8)], [(4, 6, 8)]),
        ("subset(positions=2, seed=0) then mean", (5, 8), [(4, 5, 8)], [(4, 6, 8)]),
        (None, (8,), [(4, 8)], [(4, 9), (4, 8, 1)]),
    ],
)
def test_shapes_may_vary_where_the_reduction_removes_them(reduction, shape, fits, does_not) -> None:
    layout = lay_out(shape, reduction, native="float32")
    for given_shape in fits:
        taken = layout.take(torch.ones(given_shape), samples=4)
        assert layout.apply(taken).shape == (4 * layout.rows_per_sample, layout.units)
    for given_shape in does_not:
        with pytest.raises(InvalidDataError, match=r"block: returned float32 of shape .*, planned was"):
            layout.take(torch.ones(given_shape), samples=4)


def test_errors_say_what_was_planned_and_what_would_help() -> None:
    layout = lay_out((5, 8), "tokens", native="float32")
    text = r"returned float32 of shape \(4, 6, 8\), planned was float32 of shape \(4, 5, 8\).*e.g. 'mean' or 'last'"
    with pytest.raises(InvalidDataError, match=text):
        layout.take(torch.ones(4, 6, 8), samples=4)
    assert lay_out((5, 8), "mean").planned(4) == "float64 of shape (4, any, 8)"
    assert lay_out((3, 5, 8), "max").planned(4) == "float64 of shape (4, 3, any, any)"
    assert lay_out((), None).planned(4) == "float64 of shape (4,)"
    with pytest.raises(InvalidDataError, match=r"block: returned tuple of shape \(\)"):
        layout.take((torch.ones(4, 5, 8),), samples=4)
    named = lay_out((8,), None, native="float32", output=("hidden", 1))
    assert named.take({"hidden": [0, torch.ones(2, 8)]}, samples=2).shape == (2, 8)
    with pytest.raises(InvalidDataError, match=r"block: the output has no 'hidden.1': a list came where 1 was looked"):
        named.take({"hidden": [0]}, samples=2)


def test_the_dtype_must_be_the_planned_one_unless_any_will_do() -> None:
    layout = lay_out((8,), None, native="float32")
    half = torch.ones(2, 8, dtype=torch.bfloat16)
    assert layout.take(half, samples=2, any_dtype=True) is not None
    for values, any_dtype in ((half, False), (torch.ones(2, 8, dtype=torch.int64), True)):
        with pytest.raises(InvalidDataError, match="planned was float32"):
            layout.take(values, samples=2, any_dtype=any_dtype)


def test_what_is_taken_is_detached_and_keeps_its_device_and_memory() -> None:
    layout = lay_out((8,), None, native="float32")
    values = torch.ones(2, 8, requires_grad=True) * 2
    taken = layout.take(values, samples=2)
    assert not taken.requires_grad
    assert taken.data_ptr() == values.data_ptr()
    meta = lay_out((3, 4, 4), ["flatten", subset(units=5)], native="float32")
    assert meta.apply(torch.ones(2, 3, 4, 4, device="meta")).device.type == "meta"


@pytest.mark.parametrize("native", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("reduction", NAMES)
def test_every_floating_dtype_is_reduced_in_its_own(native: str, reduction: str) -> None:
    layout = lay_out((3, 4, 5), reduction, native=native)
    values = torch.randn(2, 3, 4, 5).to(getattr(torch, native))
    found = layout.apply(layout.take(values, samples=2))
    assert found.dtype is values.dtype
    expected = np.asarray(twin(values.double().numpy(), reduction))
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=2e-2, atol=2e-2)


def test_what_a_cast_may_overflow_is_known() -> None:
    pairs = {
        (native, dtype): lay_out((4,), None, native=native, dtype=dtype).narrows
        for native in ("float64", "float32", "bfloat16", "float16")
        for dtype in ("float32", "bfloat16", "float16")
    }
    assert {pair for pair, narrows in pairs.items() if narrows} == {
        ("float64", "float32"), ("float64", "bfloat16"), ("float64", "float16"),
        ("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float16"),
    }  # fmt: skip


def test_float8_is_recorded_as_a_wider_type_only() -> None:
    with pytest.raises(InvalidArgumentError, match="float8_e4m3fn, which a recording cannot hold; pass"):
        lay_out((3, 4, 4), "max", native="float8_e4m3fn")
    layout = lay_out((3, 4, 4), "max", native="float8_e4m3fn", dtype="float32")
    found = layout.apply(torch.ones(2, 3, 4, 4).to(torch.float8_e4m3fn))
    assert found.dtype is torch.float32
    assert found.tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: check_reductions("average"), r"'spatial_mean', .*position\(k\), subset\(units=n\).*got 'average'"),
        (lambda: check_reductions(3), "got 3"),
        (lambda: check_reductions([]), r"got \[\]"),
        (lambda: check_reductions({"a": "max", "b": 1.5}), "got 1.5"),
        (lambda: check_reductions(["max", "mean"]), "'max then mean' is in no order that works"),
        (lambda: check_reductions([subset(units=2), "flatten"]), "in no order that works; it is a subset of positions"),
        (lambda: check_reductions(["tokens", subset(positions=2)]), "in no order that works"),
        (lambda: check_reductions("subset(units=0)"), r"subset\(\): units must be an integer of at least 1; got 0"),
        (lambda: check_reductions("subset(samples=3)"), "got 'subset"),
        (lambda: subset(), "exactly one of units= and positions="),
        (lambda: subset(units=1, positions=1), "exactly one of"),
        (lambda: subset(units=1, seed=-1), "seed must be an integer of at least 0"),
        (lambda: position(-1), r"position\(\) must be an integer of at least 0; got -1"),
        (lambda: lay_out((5, 8), "position(5)"), r"position\(5\) does not exist at 'block', which has 5 positions"),
        (lambda: lay_out((5, 8), [subset(positions=2), position(2)]), r"position\(2\) does not .* has 2 positions"),
        (lambda: lay_out((5, 8), None), r"three axes, \(sample, 5, 8\).*'tokens', 'mean',.*\(8 units\)"),
        (lambda: lay_out((5, 8), subset(units=3)), "three axes"),
        (lambda: lay_out((5, 8), [subset(positions=2), "flatten"]), "before 'flatten' nothing says which are"),
        (lambda: lay_out((5, 0), "mean"), r"returns no units, its shape per sample is \(5, 0\)"),
    ],
)  # fmt: skip
def test_wrong_reductions_are_told_in_one_line(build, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text) as error:
        build()
    assert "\n" not in str(error.value)


def test_a_recording_is_continued_only_with_the_same_units(tmp_path) -> None:
    def open_with(seed: int, form) -> Recorder:
        reduction = form(["flatten", subset(units=5, seed=seed)])
        return make_recorder(tmp_path / "run", model, sites=["conv1"], reduction=reduction, weights=None)

    model = Convolution()
    with open_with(0, lambda steps: steps) as recorder:
        list(recorder.epochs(1))
    for form in (lambda steps: {"conv*": steps}, lambda steps: " then ".join(map(str, steps))):
        with open_with(0, form) as recorder:
            assert recorder.committed_epoch == 1
    with pytest.raises(FingerprintError, match=r"reduction of conv1 was 'flatten then subset\(units=5, seed=0\)'"):
        open_with(1, lambda steps: steps).__enter__()


def test_tokens_are_recorded_sample_by_sample(tmp_path) -> None:
    data = torch.arange(6 * 4 * 3, dtype=torch.float32).reshape(6, 4, 3)
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(3, 2))
    probe = Probe(data, size=6, batch_size=4)
    with make_recorder(
        tmp_path / "run",
        model,
        probe=probe,
        sites=["0"],
        reduction=[subset(positions=2, seed=1), "tokens"],
        weights=None,
    ) as recorder:
        list(recorder.epochs(1))
        recorder.flush()
    keep = naive.seeded_choice(4, 2, 1)
    stored = zarr.open_group(tmp_path / "run" / "store.zarr", mode="r")["probe/sites/0/activation"]
    assert stored.shape == (2, 12, 3)
    np.testing.assert_array_equal(stored[0], naive.tokens(data[probe.indices].numpy(), keep))
