"""The probe: fixed, seeded, balanced, hashed, and loaded without touching the caller's random generators."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from dynome_recorder import InvalidArgumentError, InvalidDataError, Probe
from dynome_recorder.capture.probe import call_model, choose_samples, to_device

X = torch.arange(120.0).reshape(60, 2)
Y = torch.arange(60) % 3


def rows(probe: Probe) -> torch.Tensor:
    return torch.cat([batch[0] if isinstance(batch, (tuple, list)) else batch for batch in probe.batches()])


class Noisy(Dataset):
    """Random augmentation from all three global generators."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(2) + np.random.rand() + random.random() + index, index % 2


class Stream(IterableDataset):
    """Has a length and no samples to index."""

    def __len__(self) -> int:
        return 30

    def __iter__(self):
        return iter(range(30))


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), size=st.integers(2, 200), seed=st.integers(0, 9))
def test_choice_is_distinct_and_as_even_as_the_classes_allow(counts: list[int], size: int, seed: int) -> None:
    classes = np.repeat(np.arange(len(counts)), counts)
    chosen = choose_samples(len(classes), size=size, seed=seed, classes=classes)
    assert len(set(chosen.tolist())) == len(chosen) == min(size, len(classes))
    taken = np.bincount(classes[chosen], minlength=len(counts))
    # Even: a class has fewer than another's count minus one only when it has no more to give.
    for mine, available in zip(taken, counts, strict=True):
        assert mine == available or mine >= taken.max() - 1


def test_choice_depends_on_the_seed_alone_and_is_fixed_for_good() -> None:
    assert choose_samples(10, size=4, seed=0).tolist() == choose_samples(10, size=4, seed=0).tolist()
    assert choose_samples(1000, size=50, seed=0).tolist() != choose_samples(1000, size=50, seed=1).tolist()
    # Written down once: another numpy, platform or version of this package must choose the same samples.
    assert choose_samples(10, size=4, seed=0).tolist() == FIXED
    assert sorted(choose_samples(10, size=None, seed=0)) == list(range(10))


FIXED = [3, 2, 1, 8]


def test_leading_part_of_a_choice_is_random_not_sorted_by_class() -> None:
    classes = np.repeat([0, 1], 500)
    chosen = choose_samples(1000, size=400, seed=0, classes=classes)
    assert 70 < np.count_nonzero(classes[chosen[:200]]) < 130


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        ((X, Y), "auto"),
        ((X.numpy(), Y.numpy()), "auto"),
        (TensorDataset(X, Y), "auto"),
        (Subset(TensorDataset(X, Y), range(60)), "auto"),
        (X, Y),
        (X.numpy(), [str(label) for label in Y.tolist()]),
        ([(x, y) for x, y in zip(X, Y, strict=True)], Y),
    ],
)
def test_the_same_samples_from_every_kind_of_data(data, labels) -> None:
    probe = Probe(data, size=21, seed=2, batch_size=8, labels=labels)
    reference = Probe((X, Y), size=21, seed=2, batch_size=8)
    assert probe.balanced
    assert probe.indices.tolist() == reference.indices.tolist()
    assert torch.equal(rows(probe), X[torch.from_numpy(probe.indices)])
    assert Counter((probe.indices % 3).tolist()) == {0: 7, 1: 7, 2: 7}
    assert (
        probe.batch_sizes()
        == [8, 8, 5]
        == [len(batch[0] if isinstance(batch, (tuple, list)) else batch) for batch in probe.batches()]
    )


def test_labels_are_found_in_attributes_and_not_invented() -> None:
    class Vision(Noisy):
        targets = [0, 1] * 15

    assert Probe(Vision(), size=10).balanced
    assert not Probe(Noisy(), size=10).balanced
    assert not Probe(TensorDataset(X, X), size=10).balanced  # regression targets
    assert not Probe((X, Y), size=10, labels=None).balanced


def test_subset_takes_the_labels_of_its_own_samples() -> None:
    labels = np.repeat([0, 1], 30)
    subset = Subset(TensorDataset(X, torch.from_numpy(labels)), range(20, 60))  # ten of class 0, thirty of class 1
    probe = Probe(subset, size=20)
    assert np.bincount(labels[20:][probe.indices]).tolist() == [10, 10]


def test_loading_leaves_every_generator_and_repeats_random_augmentation() -> None:
    torch.manual_seed(4), np.random.seed(4), random.seed(4)
    expected = (torch.rand(1), np.random.rand(), random.random())
    torch.manual_seed(4), np.random.seed(4), random.seed(4)
    probe = Probe(Noisy(), size=9, seed=1, batch_size=4)
    first = rows(probe)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert torch.equal(first, rows(Probe(Noisy(), size=9, seed=1, batch_size=4)))
    assert not torch.equal(first, rows(Probe(Noisy(), size=9, seed=2, batch_size=4)))


def test_probe_keeps_its_values_when_the_data_changes() -> None:
    data = X.clone()
    probe = Probe(data, size=10)
    before, digest = rows(probe).clone(), probe.hash()
    data.zero_()
    assert torch.equal(rows(probe), before)
    assert probe.hash() == digest


def test_hash_sees_every_value_its_dtype_and_the_batches() -> None:
    changed = X.clone()
    changed[Probe(X, size=10).indices[0], 0] += 1e-3
    digests = [
        Probe(data, size=10, batch_size=size).hash()
        for data, size in ((X, 256), (changed, 256), (X.double(), 256), (X, 5), ((X, Y), 256))
    ]
    assert len(set(digests)) == len(digests)
    assert Probe(X.numpy(), size=10).hash() == digests[0]


def test_hash_reads_mappings_and_refuses_what_it_cannot_compare() -> None:
    items = [{"values": torch.ones(2) * index, "label": index % 2, "name": str(index)} for index in range(6)]
    assert Probe(items, size=4).hash() == Probe(items, size=4).hash()
    probe = Probe(items, size=4, collate=lambda samples: object())
    with pytest.raises(InvalidDataError, match="holds a object"):
        probe.hash()


def test_hash_sees_a_sparse_part_of_a_batch() -> None:
    def digest(edges: torch.Tensor) -> str:
        samples = [*torch.eye(4)]
        collate = lambda chosen: {"x": torch.stack(chosen), "edges": edges}  # noqa: E731
        return Probe(samples, transductive=True, collate=collate).hash()

    edges = torch.eye(4)
    assert digest(edges.to_sparse()) == digest(edges.to_sparse())
    assert len({digest(edges), digest(edges.to_sparse()), digest(edges.roll(1, 0).to_sparse())}) == 3


def test_transductive_probe_passes_everything_and_records_its_rows() -> None:
    probe = Probe(X, size=7, transductive=True)
    assert torch.equal(rows(probe), X)
    assert (probe.batch_sizes(), probe.rows_per_batch()) == ([7], [60])
    assert probe.hash() != Probe(X, size=7, seed=1, transductive=True).hash()


def test_call_model_takes_the_input_of_a_sample() -> None:
    model = nn.Identity()
    assert torch.equal(call_model(model, [X, Y]), X)
    assert torch.equal(call_model(model, X), X)
    assert torch.equal(call_model(lambda values: values * 2, {"values": X, "labels": Y}), X * 2)


def test_to_device_keeps_the_form_of_a_batch() -> None:
    from collections import namedtuple

    Pair = namedtuple("Pair", "x y")
    batch = {"a": [X, (Y, "text")], "b": Pair(X, 3)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == moved["a"][1][0].device.type == moved["b"].x.device.type == "meta"
    assert (moved["a"][1][1], moved["b"].y) == ("text", 3)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Probe(X, size=1), "size must be an integer of at least 2; got 1"),
        (lambda: Probe(X, batch_size=0), "batch_size must be"),
        (lambda: Probe(X, seed=-1), "seed must be"),
        (lambda: Probe(X, seed=2**64), r"seed must be below 2\*\*64"),
        (lambda: Probe(X[:1]), "at least 2 samples; got 1"),
        (lambda: Probe((X, Y[:5])), r"one row per sample each; got \[5, 60\] rows"),
        (lambda: Probe(X, labels=Y[:5]), "one entry per sample; got 5 for 60"),
        (lambda: Probe(X, labels=X), "one-dimensional integers.*Pass labels=None for regression targets"),
        (lambda: Probe(iter([1, 2, 3])), "Take a list of samples from an iterable one"),
        (lambda: Probe(Stream()), "Take a list of samples from an iterable one"),
        (lambda: Probe({"x": X}), "got dict"),
    ],
)
def test_wrong_arguments_are_named(build, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        build()


def test_samples_that_do_not_fit_together_name_collate() -> None:
    ragged = [torch.zeros(length) for length in (2, 3, 4, 5)]
    with pytest.raises(InvalidDataError, match=r"could not be loaded into batches, RuntimeError.*pass collate="):
        Probe(ragged, size=3).batches()
    padded = Probe(ragged, size=4, collate=lambda samples: nn.utils.rnn.pad_sequence(samples, batch_first=True))
    assert padded.batches()[0].shape == (4, 5)


def test_text_of_a_probe() -> None:
    assert repr(Probe((X, Y), size=9)) == "<Probe: 9 of 60 samples, class-balanced, seed 0>"


# Rows of one process


@pytest.mark.parametrize("data", [X, (X, Y), TensorDataset(X, Y), Noisy()])
@pytest.mark.parametrize(("size", "batch_size"), [(9, 4), (9, 20), (8, 4)])
def test_batches_of_some_rows_hold_the_samples_of_the_whole(data, size: int, batch_size: int) -> None:
    def values(rows: slice | None) -> torch.Tensor:
        probe = Probe(data, size=size, seed=1, batch_size=batch_size, labels=None)
        batches = probe.batches(rows)
        assert [len(batch[0] if isinstance(batch, (tuple, list)) else batch) for batch in batches] == probe.batch_sizes(
            rows
        )
        parts = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]
        return torch.cat(parts) if parts else torch.empty(0)

    whole = values(None)
    for start in range(size + 1):
        for stop in range(start, size + 1):
            part = values(slice(start, stop))
            assert len(part) == stop - start
            assert torch.equal(part, whole[start:stop]) or not len(part)


def test_rows_that_do_not_follow_each_other_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="rows must follow each other"):
        Probe(X, size=9).batches(slice(0, 9, 2))
    assert Probe(X, size=9).span(slice(5, 3)) == (5, 5)


def test_transductive_rows_come_from_the_same_batch() -> None:
    probe = Probe(X, size=9, transductive=True)
    assert probe.batches(slice(2, 5))[0] is probe.batches()[0]
    assert probe.batch_sizes(slice(2, 5)) == [3]
    index = probe.row_index(torch.device("cpu"), slice(2, 5))
    assert index.tolist() == probe.indices[2:5].tolist()
    assert probe.row_index(torch.device("cpu"), slice(2, 5)) is index, "one copy to a device, not one per snapshot"
    assert Probe(X, size=9).row_index(torch.device("cpu")) is None


def test_pinned_batches_are_made_once_and_travel_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []
    sent: list[dict] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(len(tensor))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    probe = Probe((X, Y), size=9, batch_size=4)
    first = probe.batches(pinned=True)
    assert pinned == [4, 4, 4, 4, 1, 1]
    assert probe.batches(pinned=True)[0][0] is first[0][0]
    assert probe.batches()[0][0] is first[0][0], "no second copy in memory"
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **named: sent.append(named) or to(self, *a, **named))
    to_device(first[0], torch.device("cpu"))
    assert sent == [{"non_blocking": True}] * 2
