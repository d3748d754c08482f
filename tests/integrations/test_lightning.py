"""DynomeCallback inside Lightning's own Trainer."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_training import STEPS, Classifier, Stop, dataset, every_epoch, every_steps, fit, make_callback

from dynome_recorder import FingerprintError, InvalidArgumentError, Probe, RecordingWarning, every
from dynome_recorder.integrations.lightning import DynomeCallback
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify

# Lightning's own warnings are no concern of ours; those that come from our code stay errors. The last filter wins.
pytestmark = [
    pytest.mark.filterwarnings("error:::dynome_recorder"),
    pytest.mark.filterwarnings("error::dynome_recorder.RecordingWarning"),
    pytest.mark.filterwarnings("ignore"),
]


def live(path: Path) -> list[tuple[int, int, bool]]:
    """Epoch, step and completeness of what is recorded and not superseded."""
    return [(record.epoch, record.step, record.epoch_complete) for record in read_manifest(path).live]


def values(path: Path, site: str) -> np.ndarray:
    manifest = read_manifest(path)
    indices = [index for _, index in manifest.snapshots("probe")]
    return manifest.array(manifest.sites[site]["path"])[:][indices]


def same_recording(first: Path, second: Path) -> None:
    """Equal epochs, activations and metrics."""
    one, two = read_manifest(first), read_manifest(second)
    ends = [[record.parameters for record in manifest.live if record.epoch_complete] for manifest in (one, two)]
    assert ends[0] == ends[1]
    for site in one.sites:
        assert np.array_equal(values(first, site), values(second, site))
    for left, right in ((one.epoch_metrics(), two.epoch_metrics()), (one.step_metrics(), two.step_metrics())):
        assert left.keys() == right.keys()
        for name in left:
            assert np.array_equal(left[name][0], right[name][0])
            assert np.array_equal(left[name][1], right[name][1])


def run_script(root: Path, *arguments: int) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parents[1] / "lightning_training.py"
    command = [sys.executable, str(script), str(root), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_what_is_recorded(tmp_path):
    """The untrained network, every epoch, the loss of every step, what the module logs; sanity checking is not."""
    module, _ = fit(make_callback(tmp_path / "run"), epochs=2)
    manifest = read_manifest(tmp_path / "run")
    assert live(tmp_path / "run") == [(0, 0, True), (1, STEPS, True), (2, 2 * STEPS, True)]
    assert list(manifest.sites) == ["layers.1", "layers.4"]
    steps, losses = manifest.step_metrics()["loss"]
    assert steps.tolist() == list(range(1, 2 * STEPS + 1))
    assert losses == pytest.approx(module.losses)
    epochs = manifest.epoch_metrics()
    assert sorted(epochs) == ["train_loss", "train_loss_epoch", "val_accuracy", "val_loss"]
    assert epochs["val_loss"][0].tolist() == [1, 2]
    means = np.array(module.losses).reshape(2, STEPS).mean(1)
    assert epochs["train_loss"][1] == pytest.approx(means)
    assert verify(tmp_path / "run", deep=True).clean
    probe = torch.stack([dataset()[int(index)][0] for index in Probe(dataset(), size=16, seed=3).indices])
    module.eval()
    assert np.allclose(values(tmp_path / "run", "layers.1")[-1], module.layers[:2](probe).detach().numpy())


def test_training_does_not_notice(tmp_path):
    """Losses and weights are bit for bit what they are without the callback."""
    plain, _ = fit(epochs=2)
    recorded, _ = fit(make_callback(tmp_path / "run", schedule=every(steps=2)), epochs=2)
    assert plain.losses == recorded.losses
    for name, value in plain.state_dict().items():
        assert torch.equal(value, recorded.state_dict()[name])


def test_accumulated_batches_are_one_step(tmp_path):
    module, trainer = fit(make_callback(tmp_path / "run"), epochs=2, accumulate_grad_batches=4)
    assert trainer.global_step == 4
    assert live(tmp_path / "run") == [(0, 0, True), (1, 2, True), (2, 4, True)]
    losses = np.array(module.losses).reshape(2, STEPS)
    expected = [losses[0, :4].mean(), losses[0, 4:].sum() / 4, losses[1, :4].mean(), losses[1, 4:].sum() / 4]
    assert read_manifest(tmp_path / "run").step_metrics()["loss"][1] == pytest.approx(expected)


def test_metrics_are_chosen_by_name(tmp_path):
    callback = make_callback(tmp_path / "run", step_metrics=["train_loss_step"], epoch_metrics=["val_loss", "no"])
    fit(callback, epochs=1)
    manifest = read_manifest(tmp_path / "run")
    assert list(manifest.epoch_metrics()) == ["val_loss"]
    steps = manifest.step_metrics()
    assert np.array_equal(steps["train_loss_step"][1], steps["loss"][1])


def test_a_metric_that_was_not_logged_in_an_epoch_has_no_value_there(tmp_path):
    fit(make_callback(tmp_path / "run"), epochs=4, check_val_every_n_epoch=2)
    metrics = read_manifest(tmp_path / "run").epoch_metrics()
    assert metrics["val_loss"][0].tolist() == [2, 4]
    assert metrics["train_loss"][0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("epoch", [1, 2])
def test_it_goes_on_from_the_checkpoint_of_an_epoch(tmp_path, epoch):
    """Also from one that is older than the recording: what is later is superseded."""
    fit(make_callback(tmp_path / "whole"), epochs=4)
    fit(make_callback(tmp_path / "run"), epochs=2, checkpoints=every_epoch(tmp_path / "ck"))
    checkpoint = tmp_path / "ck" / f"epoch={epoch - 1}.ckpt"
    fit(make_callback(tmp_path / "run"), epochs=4, ckpt_path=checkpoint)
    assert live(tmp_path / "run") == [(number, number * STEPS, True) for number in range(5)]
    superseded = read_manifest(tmp_path / "run").state.status["probe"].count(1)
    assert superseded == 2 - epoch
    same_before = values(tmp_path / "run", "layers.1")[: epoch + 1]
    assert np.array_equal(same_before, values(tmp_path / "whole", "layers.1")[: epoch + 1])


def test_it_goes_on_from_a_checkpoint_inside_an_epoch(tmp_path):
    """The steps before the checkpoint stay, those after it are recorded anew."""
    saving = every_steps(tmp_path / "ck", 4)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(
            make_callback(tmp_path / "run", schedule=every(steps=1)), Stop(11, kill=False), epochs=3, checkpoints=saving
        )
    assert [step for _, step, _ in live(tmp_path / "run")][-1] == 11
    fit(make_callback(tmp_path / "run", schedule=every(steps=1)), epochs=3, ckpt_path=tmp_path / "ck" / "step=8.ckpt")
    manifest = read_manifest(tmp_path / "run")
    assert manifest.step_metrics()["loss"][0].tolist() == list(range(1, 3 * STEPS + 1))
    assert [record.step for record, _ in manifest.snapshots("probe")] == list(range(3 * STEPS + 1))
    assert [place for place in live(tmp_path / "run") if place[2]] == [(e, e * STEPS, True) for e in range(4)]
    assert manifest.state.status["probe"].count(1) == 3


def test_it_goes_on_from_a_checkpoint_that_validation_wrote_at_the_end_of_an_epoch(tmp_path):
    """It holds the last step of the epoch, and Lightning takes the epoch as done."""
    saving = ModelCheckpoint(
        tmp_path / "ck", filename="{epoch}-{step}", save_top_k=-1, save_on_train_epoch_end=False, monitor="val_loss"
    )
    fit(make_callback(tmp_path / "run"), epochs=2, checkpoints=saving)
    (checkpoint,) = (tmp_path / "ck").glob(f"epoch=0-step={STEPS}.ckpt")
    fit(make_callback(tmp_path / "run"), epochs=3, ckpt_path=checkpoint)
    assert [place for place in live(tmp_path / "run") if place[2]] == [(e, e * STEPS, True) for e in range(4)]


@pytest.mark.parametrize(("batches", "steps"), [(STEPS + 3, 0), (2 * STEPS + 5, 4)])
def test_killed_and_continued(tmp_path, batches, steps):
    """SIGKILL, then the same script with the latest checkpoint."""
    done = run_script(tmp_path, batches, steps, 1)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    latest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    _, trainer = fit(make_callback(tmp_path / "run"), epochs=4, ckpt_path=latest)
    assert trainer.global_step == 4 * STEPS
    manifest = read_manifest(tmp_path / "run")
    assert [place for place in live(tmp_path / "run") if place[2]] == [(e, e * STEPS, True) for e in range(5)]
    assert manifest.step_metrics()["loss"][0].tolist() == list(range(1, 4 * STEPS + 1))
    assert verify(tmp_path / "run", deep=True).clean


def test_two_processes_record_one_recording(tmp_path):
    """Each its part of the probe; what is recorded of it is what one process would."""
    done = run_script(tmp_path, 0, 0, 2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert live(tmp_path / "run") == [(e, e * STEPS // 2, True) for e in range(5)]
    fit(make_callback(tmp_path / "alone"), epochs=1)
    for site in read_manifest(tmp_path / "run").sites:
        assert np.array_equal(values(tmp_path / "run", site)[0], values(tmp_path / "alone", site)[0])
    assert "val_loss" in read_manifest(tmp_path / "run").epoch_metrics()
    assert verify(tmp_path / "run", deep=True).clean


def test_a_run_that_starts_anew_is_refused_before_the_first_step(tmp_path):
    fit(make_callback(tmp_path / "run"), epochs=1)
    stop = Stop(1, kill=False)
    with pytest.raises(FingerprintError, match=r"is recorded to epoch 1.*ckpt_path"):
        fit(make_callback(tmp_path / "run"), stop, epochs=2)
    assert stop.left == 1
    assert live(tmp_path / "run") == [(0, 0, True), (1, STEPS, True)]


def test_a_recording_that_had_stopped_goes_on_with_a_gap(tmp_path):
    """Training went on without it, and so did the checkpoints."""

    def ids(batch):
        if len(calls) == STEPS + 1:
            raise ZeroDivisionError("mine")
        calls.append(batch)
        return range(len(batch[0]))

    calls = []
    callback = make_callback(tmp_path / "run", strict=False, sample_ids=ids)
    with pytest.warns(RecordingWarning, match="ZeroDivisionError: mine"):
        fit(callback, epochs=3, checkpoints=every_epoch(tmp_path / "ck"))
    assert live(tmp_path / "run") == [(0, 0, True), (1, STEPS, True)]
    fit(make_callback(tmp_path / "run"), epochs=4, ckpt_path=tmp_path / "ck" / "epoch=2.ckpt")
    manifest = read_manifest(tmp_path / "run")
    assert live(tmp_path / "run")[-2:] == [(3, 3 * STEPS, True), (4, 4 * STEPS, True)]
    assert [record.epoch for record, _ in manifest.snapshots("probe")] == [0, 1, 4]
    assert manifest.gaps("probe") != ()
    assert verify(tmp_path / "run", deep=True).clean


def test_batches_of_accumulated_steps_with_their_samples(tmp_path):
    """What is recorded of a batch is what the module returned for the rows that the ids name."""
    labels = {}

    def ids(batch):
        # The rows of a batch are known by their values.
        found = [next(i for i in range(48) if torch.equal(row, dataset()[i][0])) for row in batch[0]]
        labels.setdefault("all", []).extend(found)
        return found

    callback = make_callback(
        tmp_path / "run",
        batches=every(steps=1),
        batch_size=16,
        gradients=True,
        sites=["layers.0"],
        sample_ids=ids,
    )
    fit(callback, epochs=1, accumulate_grad_batches=2)
    manifest = read_manifest(tmp_path / "run")
    run = manifest.run["fingerprint"]
    recorded = manifest.array("batches/sample_id")[:]
    assert recorded.shape == (3, 16)
    assert recorded.reshape(-1).tolist() == labels["all"]
    first = torch.stack([dataset()[i][0] for i in labels["all"][:16]])
    untrained = fit(epochs=0)[0]
    activations = manifest.array(run["batches"]["layers.0"]["path"])[0]
    assert np.allclose(activations, untrained.layers[0](first).detach().numpy(), atol=1e-6)
    gradients = manifest.array(run["gradients"]["layers.0"]["path"])[:]
    assert gradients.shape == activations[None].repeat(3, 0).shape
    assert np.isfinite(gradients).all() and (gradients != 0).any()


def test_a_recording_may_begin_in_the_middle_of_training(tmp_path):
    """From a checkpoint of a run without the callback: the first snapshot carries the trainer's numbers."""
    fit(epochs=2, checkpoints=every_epoch(tmp_path / "ck"))
    fit(make_callback(tmp_path / "run"), epochs=3, ckpt_path=tmp_path / "ck" / "epoch=1.ckpt")
    assert live(tmp_path / "run") == [(2, 2 * STEPS, True), (3, 3 * STEPS, True)]


def test_an_error_of_the_callback_stops_recording_and_not_training(tmp_path):
    def ids(batch):
        raise ZeroDivisionError("mine")

    callback = make_callback(tmp_path / "run", strict=False, sample_ids=ids)
    with pytest.warns(RecordingWarning, match=r"recording stopped at .*ZeroDivisionError: mine"):
        module, _ = fit(callback, epochs=2)
    assert module.losses == fit(epochs=2)[0].losses
    assert callback.recorder is None
    assert live(tmp_path / "run") == [(0, 0, True)]
    with pytest.raises(ZeroDivisionError):
        fit(make_callback(tmp_path / "other", sample_ids=ids), epochs=2)


def test_an_error_before_the_first_step_is_raised(tmp_path):
    with pytest.raises(InvalidArgumentError, match="'nothing' matches no module"):
        fit(make_callback(tmp_path / "run", sites=["nothing"]))
    fit(make_callback(tmp_path / "run"), epochs=1)  # nothing was left locked


def test_an_error_of_training_closes_the_recording(tmp_path):
    callback = make_callback(tmp_path / "run")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(callback, Stop(STEPS + 2, kill=False))
    assert callback.recorder is None
    assert live(tmp_path / "run") == [(0, 0, True), (1, STEPS, True)]
    assert not verify(tmp_path / "run").in_progress


def test_two_callbacks_record_two_recordings(tmp_path):
    """Each finds its own place in a checkpoint."""

    def both():
        return make_callback(tmp_path / "one"), make_callback(tmp_path / "two", sites=["head"], weights=None)

    fit(*both(), epochs=1, checkpoints=every_epoch(tmp_path / "ck"))
    fit(*both(), epochs=2, ckpt_path=tmp_path / "ck" / "epoch=0.ckpt")
    for name in ("one", "two"):
        assert live(tmp_path / name) == [(e, e * STEPS, True) for e in range(3)]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", "bfloat16"), ("64-true", "float64")])
def test_the_probe_runs_in_the_trainers_precision(tmp_path, precision, dtype):
    fit(make_callback(tmp_path / "run", sites=["head"]), epochs=1, precision=precision)
    assert read_manifest(tmp_path / "run").sites["head"]["dtype"] == dtype


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"step_metrics": "loss"}, "step_metrics must be a list of names"),
        ({"epoch_metrics": "loss"}, "epoch_metrics must be a list of names"),
        ({"model": Classifier()}, "model: the trainer's own is taken"),
    ],
)
def test_wrong_arguments(tmp_path, options, text):
    with pytest.raises(InvalidArgumentError, match=text):
        DynomeCallback(tmp_path / "run", probe=Probe(dataset()), **options)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import pytorch_lightning", "pytorch_lightning"),
        ("sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None", 'pip install "dynome[lightning]"'),
    ],
)
def test_either_package_of_lightning_will_do(code, expected):
    program = f"""
import sys
{code}
try:
    from dynome_recorder.integrations.lightning import DynomeCallback
    print(DynomeCallback.__mro__[1].__module__)
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert expected in done.stdout
