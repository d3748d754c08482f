"""The scripts that a user copies run as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

WORKFLOWS = Path(__file__).parents[2] / "workflows"


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(WORKFLOWS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    assert "epoch 2: test accuracy" in run("record.py", path, 2)
    return path


def test_record_goes_on_where_it_stopped(recorded: Path) -> None:
    """Called again with more epochs, it trains the new ones alone."""
    out = run("record.py", recorded, 3)
    assert "epoch 3:" in out
    assert "epoch 2:" not in out


def test_analyse_on_cluster(recorded: Path) -> None:
    assert re.search(r": 4 snapshots, last change \d+\.\d{3}$", run("analyse_on_cluster.py", recorded).strip())


def test_every_script_is_tested() -> None:
    here, with_trainers = {"record.py", "analyse_on_cluster.py"}, {"record_lightning.py", "record_transformers.py"}
    assert {path.name for path in WORKFLOWS.glob("*.py")} == here | with_trainers  # tests/integrations runs the latter
