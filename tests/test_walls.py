"""The rules between rooms, read from the code's own imports.

A wall that only a document describes falls within a year; CONTRIBUTING.md lists them, this module holds them.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORDER = ROOT / "recorder" / "dynome_recorder"
ANALYSIS = ROOT / "analysis" / "dynome_analysis"


def imports_of(path: Path, *, module_level: bool = False) -> set[str]:
    """Dotted names that a file imports, those under ``if TYPE_CHECKING`` apart; relative imports start with a dot."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def offenders(
    folder: Path, forbidden: set[str], *, module_level: bool = False, allowed: tuple[str, ...] = ()
) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(folder.rglob("*.py"))
        if not str(path.relative_to(folder)).startswith(allowed or ("\0",))
        for name in sorted(imports_of(path, module_level=module_level))
        if name.split(".")[0] in forbidden
    ]


def test_the_recorder_knows_nothing_of_the_analysis() -> None:
    assert offenders(RECORDER, {"dynome_analysis", "dask", "distributed", "xarray", "scipy", "sklearn", "numba"}) == []


def test_torch_is_imported_late() -> None:
    assert offenders(RECORDER, {"torch"}, module_level=True, allowed=("integrations/",)) == []
    assert offenders(ANALYSIS, {"torch"}, module_level=True, allowed=("live/", "demo/training.py")) == []


def test_storage_knows_neither_torch_nor_models() -> None:
    assert offenders(RECORDER / "storage", {"torch"}) == []
    for path in (RECORDER / "storage").glob("*.py"):
        inside = {".".join(name.split(".")[:2]) for name in imports_of(path) if name.startswith("dynome_recorder.")}
        assert inside <= {"dynome_recorder.storage", "dynome_recorder.errors"}, path.name


def test_kernels_import_nothing_of_the_package() -> None:
    for path in (ANALYSIS / "kernels").glob("*.py"):
        outside = {name for name in imports_of(path) if name.startswith(("..", "dynome_"))}
        assert outside == set(), path.name
        roots = {name.split(".")[0] for name in imports_of(path) if not name.startswith(".")}
        assert roots <= {"numba", "numpy", "os", "typing", "collections", "__future__"}, path.name


@pytest.mark.parametrize("room", ["connectome", "homology", "persistence", "distance", "graphs"])
def test_numbers_know_no_glue(room: str) -> None:
    assert list((ANALYSIS / room).glob("*.py")) != []
    assert offenders(ANALYSIS / room, {"dask", "distributed", "xarray", "zarr", "pandas", "torch"}) == []
    for path in (ANALYSIS / room).glob("*.py"):
        glue = {"labelled", "pipeline", "compute", "recording", "reading", "replay", "prediction", "report", "demo"}
        inside = {name.split(".")[1] for name in imports_of(path) if name.startswith("dynome_analysis.")}
        assert not inside & glue, path.name


def test_rules_take_plain_numbers() -> None:
    forbidden = {"torch", "xarray", "zarr", "dask", "pandas", "dynome_recorder"}
    for name in ("stopping.py", "learning_rate.py"):
        roots = {imported.split(".")[0] for imported in imports_of(ANALYSIS / "replay" / name)}
        assert not roots & forbidden, name


def test_the_analysis_takes_only_the_torch_free_side_of_the_recorder() -> None:
    allowed = {"errors", "storage", "console"}
    for path in sorted(ANALYSIS.rglob("*.py")):
        if path.relative_to(ANALYSIS).parts[0] in ("demo", "live"):
            continue
        for name in imports_of(path):
            if name.split(".")[0] == "dynome_recorder":
                assert name.split(".")[1] in allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", ["dynome_recorder", "dynome_analysis"])
def test_the_table_of_contents_is_sorted_and_true(package: str) -> None:
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("dynome_recorder", ["torch", "zarr", "xarray", "dask", "numba"]),
        ("dynome_recorder.storage.manifest", ["torch", "xarray", "dask", "numba"]),
        ("dynome_analysis", ["torch", "bokeh", "sklearn"]),
        ("dynome_analysis.commands", ["torch", "bokeh", "sklearn", "xarray", "numba"]),
    ],
)
def test_an_import_loads_nothing_heavy(package: str, unwanted: list[str]) -> None:
    code = f"import sys, {package}; print(*[name for name in {unwanted!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out == []
