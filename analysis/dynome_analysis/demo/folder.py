"""The demo's output folder: whose it is, whether it can be gone on with, and starting over.

The marker file ``demo.json`` is written first. It says that the demo made the folder, so that ``--fresh``
may delete there, and with which settings, so that results of two settings never mix.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dynome_analysis.files import write_text
from dynome_recorder.errors import InvalidArgumentError, RecordingLockedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dynome_analysis.demo.settings import DemoSettings

__all__ = ["DemoFolder", "open_demo_folder"]

MARKER = "demo.json"
LOCK = "demo.lock"
# What a demo that was killed at its very start may leave without a marker.
OWN_FILES = (LOCK, f"{MARKER}.partial")


@dataclass(frozen=True)
class DemoFolder:
    """Paths in the output folder.

    Attributes
    ----------
    path : Path
        The folder itself.
    found : bool
        Whether an earlier call of the demo, with the same settings, had begun it.
    """

    path: Path
    found: bool

    @property
    def summary(self) -> Path:
        """The summary, written last but one."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def recording(self, name: str) -> Path:
        """Folder of the recording of a run."""
        return self.path / "runs" / name

    def checkpoints(self, name: str) -> Path:
        """Folder of the checkpoints of a run; gone when the run is complete."""
        return self.path / "checkpoints" / name


@contextmanager
def open_demo_folder(path: Path, settings: DemoSettings, *, fresh: bool) -> Iterator[DemoFolder]:
    """Make the folder the demo's own, or go on in one that is; nobody else works in it meanwhile.

    Raises
    ------
    InvalidArgumentError
        The folder holds something else, or a demo with other settings.
    RecordingLockedError
        Another demo is running there.
    StorageError
        The folder cannot be written.
    """
    marker = path / MARKER
    expected = {"made by": "dynome demo", "settings": settings.as_json()}
    # Looked at before the lock file is put there, so that a folder that is not ours stays untouched.
    if path.exists() and not path.is_dir():
        raise InvalidArgumentError(f"{path} is a file: name a folder with --out")
    if path.is_dir() and not marker.is_file() and any(child.name not in OWN_FILES for child in path.iterdir()):
        raise InvalidArgumentError(
            f"{path} is not empty and was not made by dynome demo, so nothing is written there: name another folder "
            "with --out"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK, blocking=False)
        lock.acquire()
    except Timeout as error:
        raise RecordingLockedError(
            f"another dynome demo is working in {path}: wait for it or name another folder with --out"
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}): name another folder with --out") from error
    try:
        if fresh and marker.is_file():
            _clear(path)
        found = marker.is_file()
        if found:
            _check_marker(marker, expected)
        else:
            write_text(marker, json.dumps(expected, indent=1) + "\n")
        yield DemoFolder(path, found)
    finally:
        lock.release()


def _check_marker(marker: Path, expected: dict[str, Any]) -> None:
    try:
        stored = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = None
    if stored == expected:
        return
    settings = (stored or {}).get("settings", {}) if isinstance(stored, dict) else {}
    differing = [name for name, value in expected["settings"].items() if settings.get(name) != value]
    told = next((name for name in ("dataset", "quick", "seed") if name in differing), "its settings")
    raise InvalidArgumentError(
        f"{marker.parent} holds a demo made otherwise ({told} differs): start over with --fresh, or name another "
        "folder with --out"
    )


def _clear(path: Path) -> None:
    """Delete what the demo writes and nothing else; the marker last, so that what was interrupted can be repeated."""
    try:
        for name in ("runs", "checkpoints"):
            if (path / name).exists():
                shutil.rmtree(path / name)
        for name in ("summary.json", "report.html", MARKER):
            (path / name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{error.filename} cannot be deleted ({error.strerror}): name another folder with --out"
        ) from error
