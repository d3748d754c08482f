"""DynomeCallback inside Hugging Face's own Trainer, with a tiny model of random weights."""

import gc
import importlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers_training import STEPS, Stop, dataset, make_callback, make_model, train

from dynome_recorder import FingerprintError, InvalidArgumentError, MissingExtraError, Probe, RecordingWarning, every
from dynome_recorder.integrations.transformers import DynomeCallback
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify

# Their own warnings are no concern of ours; those that come from our code stay errors. The last filter wins.
pytestmark = [
    pytest.mark.filterwarnings("error:::dynome_recorder"),
    pytest.mark.filterwarnings("error::dynome_recorder.RecordingWarning"),
    pytest.mark.filterwarnings("ignore"),
]


def live(path: Path) -> list[tuple[int, int, bool]]:
    """Epoch, step and completeness of what is recorded and not superseded."""
    return [(record.epoch, record.step, record.epoch_complete) for record in read_manifest(path).live]


def ends(path: Path) -> list[tuple[int, int]]:
    return [(epoch, step) for epoch, step, complete in live(path) if complete]


def values(path: Path, site: str) -> np.ndarray:
    manifest = read_manifest(path)
    return manifest.array(manifest.sites[site]["path"])[:][[index for _, index in manifest.snapshots("probe")]]


def test_what_is_recorded(tmp_path):
    """The untrained network, every epoch, what the trainer logs and evaluates, without its timings."""
    model, losses = train(tmp_path / "out", make_callback(tmp_path / "run", weights=every(epochs=1)))
    manifest = read_manifest(tmp_path / "run")
    assert live(tmp_path / "run") == [(0, 0, True), (1, STEPS, True), (2, 2 * STEPS, True)]
    assert len(manifest.sites) == 3
    steps = manifest.step_metrics()
    assert sorted(steps) == ["grad_norm", "learning_rate", "loss"]
    assert dict(zip(steps["loss"][0].tolist(), steps["loss"][1].tolist(), strict=True)) == pytest.approx(losses)
    epochs = manifest.epoch_metrics()
    assert list(epochs) == ["eval_loss"]
    assert epochs["eval_loss"][0].tolist() == [1, 2]
    assert verify(tmp_path / "run", deep=True).clean
    rows = [dataset()[int(index)] for index in Probe(dataset(), size=16, seed=3).indices]
    batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        pooled = model.eval().bert(**batch).pooler_output
    assert np.allclose(values(tmp_path / "run", "bert.pooler.activation")[-1], pooled.numpy(), atol=1e-6)


def test_training_does_not_notice(tmp_path):
    plain, losses = train(tmp_path / "out")
    recorded, same = train(tmp_path / "out", make_callback(tmp_path / "run", schedule=every(steps=2)))
    assert losses == same
    for name, value in plain.state_dict().items():
        assert torch.equal(value, recorded.state_dict()[name])


def test_accumulated_batches_are_one_step(tmp_path):
    _, losses = train(tmp_path / "out", make_callback(tmp_path / "run"), gradient_accumulation_steps=4)
    assert live(tmp_path / "run") == [(0, 0, True), (1, 2, True), (2, 4, True)]
    assert read_manifest(tmp_path / "run").step_metrics()["loss"][1] == pytest.approx(list(losses.values()))


def test_what_is_evaluated_inside_an_epoch_belongs_to_the_step(tmp_path):
    train(tmp_path / "out", make_callback(tmp_path / "run"), eval_strategy="steps", eval_steps=4)
    manifest = read_manifest(tmp_path / "run")
    assert manifest.step_metrics()["eval_loss"][0].tolist() == [4, 8, 12]
    assert "eval_loss" not in manifest.epoch_metrics()
    assert ends(tmp_path / "run") == [(0, 0), (1, STEPS), (2, 2 * STEPS)]


@pytest.mark.parametrize("evaluation", ["no", "epoch"])
def test_what_is_logged_once_per_epoch_is_kept(tmp_path, evaluation):
    """Also in the last one, whose log comes after its end."""
    callback = make_callback(tmp_path / "run")
    train(tmp_path / "out", callback, logging_strategy="epoch", eval_strategy=evaluation)
    steps = read_manifest(tmp_path / "run").step_metrics()
    assert steps["loss"][0].tolist() == [STEPS, 2 * STEPS]


def test_training_that_ends_inside_an_epoch(tmp_path):
    """The epoch is not complete; its steps are kept."""
    train(tmp_path / "out", make_callback(tmp_path / "run"), max_steps=STEPS + 2)
    assert ends(tmp_path / "run") == [(0, 0), (1, STEPS)]
    assert live(tmp_path / "run")[-1] == (1, STEPS + 2, False)


@pytest.mark.parametrize("step", [4, STEPS, 8])
def test_it_goes_on_from_a_checkpoint(tmp_path, step):
    """Inside an epoch, at its very end, and from one that is older than the recording."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    train(tmp_path / "whole", make_callback(tmp_path / "reference", schedule=every(steps=1)), epochs=3, **saving)
    callback = make_callback(tmp_path / "run", schedule=every(steps=1))
    with pytest.raises(RuntimeError, match="stopped by the test"), callback:
        train(tmp_path / "out", callback, Stop(10, kill=False), epochs=3, **saving)
    assert live(tmp_path / "run")[-1][1] == 10
    callback = make_callback(tmp_path / "run", schedule=every(steps=1))
    train(tmp_path / "out", callback, epochs=3, resume=str(tmp_path / "out" / f"checkpoint-{step}"), **saving)
    assert ends(tmp_path / "run") == [(e, e * STEPS) for e in range(4)]
    manifest = read_manifest(tmp_path / "run")
    assert [record.step for record, _ in manifest.snapshots("probe")] == list(range(3 * STEPS + 1))
    assert manifest.state.status["probe"].count(1) >= 10 - step
    # The trainer restores its random state inside an epoch, so that the resumed run is the uninterrupted one; at the
    # very end of an epoch it does not (without the callback neither).
    same = slice(None) if step % STEPS else slice(step + 1)
    for site in manifest.sites:
        assert np.array_equal(values(tmp_path / "run", site)[same], values(tmp_path / "reference", site)[same])


@pytest.mark.parametrize(("steps", "saving"), [(STEPS + 3, 0), (2 * STEPS + 5, 4)])
def test_killed_and_continued(tmp_path, steps, saving):
    """SIGKILL, then the same script with the latest checkpoint."""
    script = Path(__file__).parents[1] / "transformers_training.py"
    command = [sys.executable, str(script), str(tmp_path), str(steps), str(saving)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    callback = make_callback(tmp_path / "run", weights=every(epochs=1))
    train(tmp_path / "out", callback, epochs=4, resume=True, save_strategy="epoch")
    assert ends(tmp_path / "run") == [(e, e * STEPS) for e in range(5)]
    assert verify(tmp_path / "run", deep=True).clean


def test_a_run_that_starts_anew_is_refused_before_the_first_step(tmp_path):
    train(tmp_path / "out", make_callback(tmp_path / "run"), epochs=1)
    stop = Stop(1, kill=False)
    with pytest.raises(FingerprintError, match=r"is recorded to epoch 1.*resume_from_checkpoint"):
        train(tmp_path / "out", make_callback(tmp_path / "run"), stop)
    assert stop.left == 1


def test_an_error_stops_recording_and_not_training(tmp_path):
    class Breaks(DynomeCallback):
        def on_evaluate(self, *arguments, **given):
            with self._driver.shielded("testing"):
                raise ZeroDivisionError("mine")

    callback = Breaks(
        tmp_path / "run", probe=Probe(dataset(), size=16, seed=3), sites=["bert.pooler.activation"], strict=False
    )
    with pytest.warns(RecordingWarning, match="ZeroDivisionError: mine"):
        _, losses = train(tmp_path / "out", callback)
    assert losses == train(tmp_path / "out")[1]
    assert callback.recorder is None


def test_a_callback_that_is_dropped_closes_its_recording(tmp_path):
    """The trainer does not tell of exceptions."""
    callback = make_callback(tmp_path / "run")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train(tmp_path / "out", callback, Stop(STEPS + 2, kill=False))
    assert verify(tmp_path / "run").in_progress
    del callback
    gc.collect()
    assert not verify(tmp_path / "run").in_progress


def test_an_exception_ends_the_process_with_a_whole_recording(tmp_path):
    code = (
        "import sys; sys.path.insert(0, {tests!r})\n"
        "from transformers_training import *\n"
        "train({out!r}, make_callback({run!r}), Stop(STEPS + 2, kill=False))\n"
    ).format(tests=str(Path(__file__).parents[1]), out=str(tmp_path / "out"), run=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "RuntimeError: stopped by the test"
    assert ends(tmp_path / "run") == [(0, 0), (1, STEPS)]
    assert verify(tmp_path / "run", deep=True).clean


def test_mixed_precision_is_the_trainers(tmp_path):
    callback = make_callback(tmp_path / "run", sites=["bert.encoder.layer.0.intermediate.dense"])
    train(tmp_path / "out", callback, epochs=1, bf16=True)
    (site,) = read_manifest(tmp_path / "run").sites.values()
    assert site["dtype"] == "bfloat16"


def test_sharded_models_are_refused(tmp_path):
    callback = make_callback(tmp_path / "run")

    class Arguments:
        fsdp = "full_shard"
        deepspeed = None

    with pytest.raises(InvalidArgumentError, match="fsdp shards them"):
        callback.on_train_begin(Arguments(), None, None, model=make_model())


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.trainer_callback", None)
    monkeypatch.delitem(sys.modules, "dynome_recorder.integrations.transformers")
    with pytest.raises(MissingExtraError, match=r'pip install "dynome\[transformers\]"'):
        importlib.import_module("dynome_recorder.integrations.transformers")
