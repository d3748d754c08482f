"""The scripts for trainers run as they are, and go on where they stopped."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dynome_recorder.storage.manifest import read_manifest

WORKFLOWS = Path(__file__).parents[2] / "workflows"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(WORKFLOWS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "recording stopped" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("script", ["record_lightning.py", "record_transformers.py"])
def test_recorded_and_continued(tmp_path: Path, script: str) -> None:
    assert re.search(r"^epoch 1: test accuracy 0\.\d{3}$", run(script, tmp_path / "run", 1), re.M)
    before = [record.checksum for record in read_manifest(tmp_path / "run").live]
    assert re.search(r"^epoch 2: test accuracy 0\.\d{3}$", run(script, tmp_path / "run", 2), re.M)
    live = read_manifest(tmp_path / "run").live
    assert [record.epoch for record in live if record.epoch_complete] == [0, 1, 2]
    assert [record.checksum for record in live][: len(before)] == before
