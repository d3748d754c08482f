"""Every Python block of the documents runs as written; every relative link leads somewhere.

A block that must not run carries ``<!-- not run: reason -->`` on the line before its fence.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for pattern in ("*.md", "recorder/*.md", "analysis/*.md", "data/*.md", "docs/*.md", "workflows/*.md")
    for path in sorted(ROOT.glob(pattern))
]
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```python\n(?P<code>.*?)```", re.S)
# These frameworks warn of themselves; tests/integrations holds our own code to none.
WITH_WARNINGS = ("docs/lightning.md", "docs/transformers.md")
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|#|mailto:)([^)#\s]+)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[str]:
    return [found["code"] for found in FENCE.finditer(path.read_text(encoding="utf-8")) if not found["reason"]]


def test_the_documents_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recorder/FORMAT.md", "analysis/METHODS.md"} <= {
        name_of(path) for path in DOCUMENTS
    }
    assert {f"docs/{page}.md" for page in ("recording", "lightning", "transformers", "notebooks")} <= {
        name_of(path) for path in DOCUMENTS
    }
    assert blocks(ROOT / "README.md")


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path)], ids=name_of)
def test_python_blocks_run_as_written(path: Path, tmp_path: Path) -> None:
    """The blocks of one document run one after another in one process, in an empty folder."""
    script = tmp_path / "document.py"
    script.write_text("\n".join(blocks(path)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *(() if name_of(path) in WITH_WARNINGS else ("-W", "error")), str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "recording stopped" not in done.stderr, done.stderr[-3000:]  # a warning that no filter makes an error


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    missing = [
        link for link in LINK.findall(path.read_text(encoding="utf-8")) if not (path.parent / link.strip()).exists()
    ]
    assert missing == []
