"""How objects look: the same facts as text and as HTML, and nothing that could be taken for markup."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynome_recorder import Probe, Recorder, at, every, log_spaced
from dynome_recorder.representation import Display, show_probe, show_recorder, show_schedule


@given(
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20), st.lists(st.integers(), max_size=4)
)
def test_every_cell_is_shown_in_both_forms(text, numbers):
    """Also where a name looks like markup of rich or of HTML."""
    name = f"[red]<b>&{text}"
    display = Display(
        name, (("fact", name), ("empty", "")), ("site", "value"), ((name, *map(str, numbers[:1] or [0])),)
    )
    page = display._repr_html_()
    assert "<b>" not in page
    assert page.count("&lt;b&gt;&amp;") == 3
    assert "empty" not in page and "empty" not in str(display)
    assert str(display).replace("\n", "").count("[red]<b>&") >= 2


def test_a_schedule_shows_when_it_is_due():
    text = str(show_schedule(every(epochs=5) | at(100, 200, unit="step")))
    assert "every(epochs=5) | at(100, 200, unit='step')" in text
    assert "0, 5, 10, 15, 20 (5 up to 20)" in text
    assert "100, 200 (2 up to 1,000)" in text
    assert "300, 600, 900 (3 up to 1,000)" in str(show_schedule(every(steps=300)))
    assert "steps" not in str(show_schedule(at(3, 4)))
    assert "1, 2, 3, 6, 10, 18" in str(show_schedule(log_spaced(per_decade=4)))


def test_a_probe_shows_its_choice():
    probe = Probe((torch.zeros(1200, 3), torch.arange(1200) % 3), size=1000, seed=7, batch_size=256)
    text = str(show_probe(probe))
    assert "1,000 of 1,200, class-balanced, seed 7" in text
    assert "4 of up to 256 samples" in text
    assert "rows" not in text
    assert "all of the data" in str(show_probe(Probe(torch.zeros(9, 3), transductive=True)))


@pytest.mark.parametrize("degraded", [None, "epoch 3: the disk is full."])
def test_a_recorder_shows_where_it_stands(degraded):
    text = str(
        show_recorder(
            path="runs/mlp",
            model="MLP",
            state="recording",
            completed=3,
            step=1234,
            schedules={"probe": every(epochs=1), "batches": every(steps=10)},
            sites=4,
            probe=Probe(torch.zeros(90, 3)),
            degraded=degraded,
            statistics={"blocked_seconds": 0.25},
        )
    )
    assert text.startswith("Recorder of MLP in runs/mlp")
    assert ("stopped: epoch 3: the disk is full." in text) is (degraded is not None)
    for fact in ("epoch 3, step 1,234", "every(steps=10)", "90 of 90, random, seed 0", "blocked seconds  0.25"):
        assert fact in text


def test_objects_show_themselves_in_notebooks_and_terminals(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    probe = Probe(torch.randn(10, 4), size=6)
    recorder = Recorder(tmp_path / "run", model, probe=probe)
    assert "not open" in repr(recorder)
    with recorder:
        for _ in recorder.epochs(1):
            assert "recording" in repr(recorder)
    assert "closed" in repr(recorder)
    assert "blocked seconds" in repr(recorder)
    for one in (recorder, probe, every(epochs=1)):
        assert one._repr_html_().startswith("<p>")
