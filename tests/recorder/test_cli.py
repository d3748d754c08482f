"""The command line: one object, one line, one exit code."""

import json
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner
from recordings import describe, write_ranks

from dynome_recorder import cli, console
from dynome_recorder.cli import main
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError
from dynome_recorder.info import describe_recording
from dynome_recorder.shield import DEGRADED_FILE, Blame, RecordingWarning, Shield
from dynome_recorder.storage.format import seal, unseal
from dynome_recorder.storage.writer import RecordingWriter


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_info_shows_what_was_recorded(make_recording):
    path = make_recording(hyperparameters={"note": "[red]not markup[/red]"})
    result = call("info", path)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    for text in ("hidden1", "40 sample x 12 unit", "head.weight", "0 to 6 (complete to 6)", "val_loss", "7 committed"):
        assert text in result.stdout
    assert "[red]not markup[/red]" in result.stdout


def test_info_as_json_is_one_object(make_recording):
    path = make_recording(dtype="bfloat16")
    result = call("info", path, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document == json.loads(json.dumps(console.to_json(describe_recording(path))))
    assert document["status"] == "idle"
    assert document["epochs"] == {"first": 0, "last": 6, "last_complete": 6, "last_step": 18}
    assert document["snapshots"]["probe"] == {"committed": 7, "superseded": 0, "lost": 0}
    assert [site["name"] for site in document["sites"]] == ["hidden1", "hidden2"]
    assert document["sites"][0]["bytes_per_snapshot"] == 40 * 12 * 2
    assert document["metrics"]["step"]["loss"]["count"] == 18
    assert document["metrics"]["epoch"]["val_loss"]["last_epoch"] == 6
    assert document["model"]["parameter_count"] == 12 * 10 + 12 + 8 * 12 + 8 + 4 * 8 + 4
    stored = sum(f.stat().st_size for f in path.rglob("c.*") if f.parent.name in {"activation", "weight"})
    assert document["size"]["stored_bytes"] == stored


def test_info_tells_batches_what_was_left_out_and_processes(tmp_path):
    path = write_ranks(tmp_path / "run", steps=5, skipped={(3, 1): ("batches",)})
    result = call("info", path)
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    for text in ("batches: 4 committed, 1 skipped", "probe: 3 committed;", "processes 2", "tokens (gradients)"):
        assert text in shown, shown
    document = json.loads(call("info", path, "--json").stdout)
    assert document["skipped"]["batches"] == 1
    assert document["snapshots"]["batches"] == {"committed": 4, "superseded": 0, "lost": 0}
    assert document["ranks"] == [2]
    single = call("info", write_ranks(tmp_path / "one", steps=2, parts=1, world=1))
    assert "processes" not in single.stdout


def test_info_of_empty_and_of_running_recordings(tmp_path):
    with RecordingWriter.open(tmp_path / "run", describe({"a": 3}, samples=4)):
        document = json.loads(call("info", tmp_path / "run", "--json").stdout)
        assert document["status"] == "recording"
        assert document["epochs"]["last"] is None
        assert call("info", tmp_path / "run").exit_code == 0


def test_info_tells_where_recording_stopped_although_training_went_on(make_recording):
    path = make_recording()
    assert describe_recording(path)["degraded"] is None
    shield = Shield(path)
    with pytest.warns(RecordingWarning):
        shield.stop_recording(OSError("no space"), Blame("epoch 7", 7, 21))
    assert (
        json.loads(call("info", path, "--json").stdout)["degraded"] == shield.degraded == "epoch 7: OSError: no space."
    )
    assert "epoch 7: OSError: no space." in call("info", path).stdout
    (path / DEGRADED_FILE).write_text("{")
    assert "damaged" in describe_recording(path)["degraded"]
    assert call("verify", path).exit_code == 0


def test_info_tells_of_bad_numbers(make_recording):
    from dataclasses import replace

    path = make_recording(change=lambda moment: replace(moment, health={"hidden1": {"nan": 3}}))
    assert json.loads(call("info", path, "--json").stdout)["health"] == {"hidden1": {"nan": 21}}
    assert "hidden1: 21 nan" in call("info", path).stdout


@pytest.mark.parametrize("command", ["info", "verify"])
@pytest.mark.parametrize("damage", ["nothing", "no recording", "version"])
def test_bad_recordings_are_one_line_and_exit_code_1(make_recording, tmp_path, command, damage):
    path = tmp_path / "x"
    if damage == "no recording":
        path.mkdir()
    elif damage == "version":
        make_recording(path, epochs=0)
        run = unseal((path / "run.json").read_bytes(), where="x", indent=True)
        run["format"]["version"] = "7.0"
        (path / "run.json").write_bytes(seal(run, indent=True))
    result = call(command, path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("dynome: error: ")
    assert result.stderr.count("\n") == 1
    as_json = call(command, path, "--json")
    assert as_json.exit_code == 1
    assert as_json.stderr == ""
    error = json.loads(as_json.stdout)["error"]
    assert result.stderr == f"dynome: error: {error['message']}\n"
    assert error["exit_code"] == 1


@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_info_refuses_a_chunk_that_is_not_whole(make_recording, how):
    path = make_recording(epochs=2)
    chunk = path / "store.zarr/probe/sites/hidden1/activation/c.1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    if how == "missing":
        chunk.unlink()
    result = call("info", path)
    assert result.exit_code == 1
    assert "c.1.0.0" in result.stderr


def test_verify_of_a_clean_recording(make_recording):
    path = make_recording(epochs=2)
    result = call("verify", path, "--deep")
    assert result.exit_code == 0
    assert f"{path}: clean (3 commit records, 24 files" in result.stdout
    document = json.loads(call("verify", path, "--json").stdout)
    assert (document["valid"], document["clean"], document["findings"]) == (True, True, [])


def test_verify_finds_and_repairs(make_recording):
    path = make_recording(epochs=2)
    chunk = path / "store.zarr/probe/sites/hidden1/activation/c.1.0.0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    assert call("verify", path).exit_code == 0  # the size is right
    result = call("verify", path, "--deep")
    assert result.exit_code == 1
    assert "c.1.0.0" in result.stdout
    assert "'dynome verify --deep --repair' makes it valid again" in result.stdout
    document = json.loads(call("verify", path, "--deep", "--json").stdout)
    assert document["findings"][0]["file"].endswith("c.1.0.0")
    repaired = call("verify", path, "--deep", "--repair")
    assert repaired.exit_code == 0
    assert "probe: snapshots 1 are recorded as lost" in repaired.stdout
    assert "repair: " in repaired.stdout
    assert json.loads(call("info", path, "--json").stdout)["snapshots"]["probe"]["lost"] == 1
    assert "1 lost" in call("info", path).stdout


def test_verify_of_what_cannot_be_repaired(make_recording):
    path = make_recording(epochs=0)
    (path / "run.json").write_bytes((path / "run.json").read_bytes()[:50])
    result = call("verify", path, "--repair")
    assert result.exit_code == 1
    assert "restore it from a copy" in result.stdout


@pytest.mark.parametrize("arguments", [["info"], ["nonsense"], ["verify", "x", "--depe"], ["info", "a", "b"]])
def test_wrong_calls_are_one_line_and_exit_code_2(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("dynome: error: ")
    assert result.stderr.count("\n") == 1
    error = json.loads(call(*arguments, "--json").stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)


def test_help_and_version():
    for arguments in (["--help"], ["-h"], ["info", "--help"], ["verify", "-h"], []):
        assert "Usage:" in call(*arguments).output
    assert call("--help").exit_code == 0
    assert call("--version").stdout.startswith("dynome, version ")


class BrokenEntry:
    def __init__(self, module):
        self.module = module

    def load(self):
        raise ModuleNotFoundError(f"No module named {self.module!r}", name=self.module)


@pytest.fixture
def fresh_group(monkeypatch):
    """A group that has not asked other packages yet."""
    group = cli.DynomeGroup(name="dynome", commands={"info": main.commands["info"]})
    return lambda *arguments: CliRunner().invoke(group, list(arguments))


def test_a_base_install_names_the_extra(fresh_group, monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda group: [BrokenEntry("dask.array")])
    for name in ("analyze", "demo", "predict", "replay", "report"):
        result = fresh_group(name, "stopping", "RUN", "--patience", "5")
        assert result.exit_code == 2
        expected = 'dynome: error: this command needs dask, which is not installed: pip install "dynome[analysis]"\n'
        assert result.stderr == expected
        assert json.loads(fresh_group(name, "--json").stdout)["error"]["type"] == "MissingExtraError"
    assert "not installed" in fresh_group("--help").stdout


def test_a_missing_analysis_package_names_the_extra(fresh_group, monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    result = fresh_group("demo")
    assert result.exit_code == 2
    assert 'needs dynome_analysis, which is not installed: pip install "dynome[analysis]"' in result.stderr


def test_commands_of_other_packages_are_added(fresh_group, monkeypatch):
    class Entry:
        def load(self):
            return lambda group: group.add_command(click.Command("extra", callback=lambda: click.echo("done")))

    monkeypatch.setattr(cli, "entry_points", lambda group: [Entry()])
    assert fresh_group("extra").stdout == "done\n"
    assert "extra" in fresh_group("--help").stdout


@pytest.mark.parametrize(
    ("error", "exit_code", "text"),
    [
        (InvalidDataError("activations of a at epoch 3 are NaN"), 1, "activations of a at epoch 3 are NaN"),
        (InvalidArgumentError("two\nlines"), 2, "two lines"),
        (ModuleNotFoundError("x", name="torch.nn"), 2, 'pip install "dynome[torch]"'),
        (ModuleNotFoundError("x", name="gtda"), 2, 'pip install "dynome[giotto]"'),
        (ModuleNotFoundError("x", name="ripser"), 2, 'pip install "dynome[analysis]"'),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oops"), 1, "internal error: ZeroDivisionError: oops (set DYNOME_TRACEBACK=1"),
    ],
)
def test_every_failure_is_one_line(fresh_group, monkeypatch, error, exit_code, text):
    def fail():
        raise error

    monkeypatch.setattr(
        cli, "entry_points", lambda group: [type("E", (), {"load": lambda self: lambda g: g.add_command(command)})()]
    )
    command = click.Command("fail", callback=fail, params=[click.Option(["--json"], is_flag=True, expose_value=False)])
    result = fresh_group("fail")
    assert result.exit_code == exit_code
    assert text in result.stderr
    assert len(result.stderr.split("\n")) - (exit_code == 130) == 2  # click starts a new line behind ^C
    assert text in json.loads(fresh_group("fail", "--json").stdout)["error"]["message"]


def test_a_bug_shows_its_traceback_when_asked(fresh_group, monkeypatch):
    def fail():
        raise ZeroDivisionError("oops")

    monkeypatch.setenv("DYNOME_TRACEBACK", "1")
    entry = type("E", (), {"load": lambda self: lambda g: g.add_command(click.Command("fail", callback=fail))})
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry()])
    assert isinstance(fresh_group("fail").exception, ZeroDivisionError)


def test_json_has_no_nan():
    document = {"a": float("nan"), "b": np.array([1.0, np.inf]), "c": (np.int64(1), {"d"}), "e": None, "f": b"x"}
    assert console.to_json(document) == {"a": None, "b": [1.0, None], "c": [1, ["d"]], "e": None, "f": "b'x'"}


def test_progress_is_silent_without_a_terminal_and_drawn_on_one(monkeypatch, capsys):
    with console.show_progress() as progress:
        progress("Reading", 1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with console.show_progress() as progress:
        progress("Reading", 1, 2)
        progress("Reading", 2, 2)
    assert "Reading" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[sys.executable, "-m", "dynome_recorder"]])
def test_the_module_is_the_command(make_recording, command):
    path = make_recording(epochs=0)
    result = subprocess.run([*command, "info", str(path), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["commits"] == 1
    assert result.stderr == ""
    missing = subprocess.run([*command, "info", "nothing"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert missing.stderr.startswith("dynome: error: nothing: not a recording")


def test_output_that_nobody_reads_to_the_end(make_recording):
    path = make_recording(epochs=0)
    shell = f"{sys.executable} -m dynome_recorder info {path} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.returncode in (0, 1)  # 1 is click's and rich's answer to a closed pipe


def test_info_loads_nothing_heavy(make_recording):
    path = make_recording(epochs=0)
    code = (
        "import sys\nfrom dynome_recorder.cli import main\n"
        "try:\n main(['info', sys.argv[1]])\nexcept SystemExit: pass\n"
        "sys.stderr.write(str([n for n in ('zarr', 'torch', 'dynome_analysis', 'xarray', 'dask') if n in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stderr == "[]"
