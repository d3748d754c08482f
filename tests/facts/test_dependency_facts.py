"""What the design takes for granted of its dependencies as packages: pins, licences, floors, one test per fact.

Read from what is installed and from the two tested sets, `constraints.txt` (with giotto-tda) and
`constraints-modern.txt` (without). Nothing here asks a network.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from sklearn.utils import check_array

ROOT = Path(__file__).parents[2]
SETS = ("constraints.txt", "constraints-modern.txt")


def project() -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(file: str) -> dict[str, Version]:
    """Return the versions of a tested set, by normalised name."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*?\])?==([^\s;]+)", (ROOT / file).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): Version(version) for name, version in lines}


def installed(name: str) -> Version | None:
    """Return the installed version of a distribution, or None."""
    try:
        return Version(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(name: str) -> dict[str, SpecifierSet]:
    """Return what an installed distribution asks for, without its extras."""
    found = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    return {one.name: one.specifier for one in found if one.marker is None or one.marker.evaluate({"extra": ""})}


def test_the_python_floor():
    """3.11, the lowest that the pinned zarr takes; zarr 3.2 and later need 3.12, so the sets stay below it."""
    floor = SpecifierSet(project()["requires-python"])
    assert Version("3.11") in floor
    assert Version("3.10") not in floor
    assert Version(".".join(map(str, sys.version_info[:3]))) in floor
    own = SpecifierSet(importlib.metadata.metadata("zarr")["Requires-Python"])
    assert (Version("3.11") in own) == (installed("zarr") < Version("3.2"))
    for file in SETS:
        assert Version("3.1.3") <= pinned(file)["zarr"] < Version("3.2")


def test_giotto_tda_pins_scikit_learn():
    """giotto-tda 0.6.2 pins scikit-learn==1.3.2, hence numpy < 2: it is an extra, and there are two tested sets."""
    with_giotto, modern = (pinned(file) for file in SETS)
    assert with_giotto["scikit-learn"] == Version("1.3.2")
    assert with_giotto["numpy"] < Version("2")
    assert "giotto-tda" not in modern
    assert modern["scikit-learn"] >= Version("1.8")
    assert modern["numpy"] >= Version("2")
    assert not any("giotto" in text for text in project()["dependencies"])
    if installed("giotto-tda") is None:
        assert installed("scikit-learn") != Version("1.3.2")
    else:
        assert requirements("giotto-tda")["scikit-learn"] == SpecifierSet("==1.3.2")
        assert installed("giotto-tda") == with_giotto["giotto-tda"]


def test_what_giotto_tda_calls_is_gone_from_scikit_learn_1_8():
    """It passes `force_all_finite`: so no newer scikit-learn can stand beside it, whatever pip is talked into."""
    there = "force_all_finite" in inspect.signature(check_array).parameters
    assert there == (installed("scikit-learn") < Version("1.8"))


def test_the_engine_of_giotto_tda_pins_nothing():
    """giotto-ph, its engine, asks for no upper bound: it may stand beside numpy 2 and the newest scikit-learn."""
    if installed("giotto-ph") is None:
        assert "giotto-ph" not in pinned("constraints-modern.txt")
    else:
        bounds = requirements("giotto-ph")
        assert all(Version(new) in bounds[name] for name, new in (("numpy", "2.4.6"), ("scikit-learn", "1.9.1")))


@pytest.mark.parametrize("name", ["giotto-tda", "giotto-ph"])
def test_giotto_is_agpl_and_dynome_is_not(name):
    """Both are AGPL-3.0: neither is installed unless the extra `giotto` is asked for, and the README says so."""
    licence = "" if installed(name) is None else str(importlib.metadata.metadata(name)["License"])
    assert licence in ("", "GNU AGPLv3")
    assert project()["license"] == "BSD-3-Clause"
    assert [extra for extra, texts in project()["optional-dependencies"].items() if any(name in t for t in texts)] in (
        [["giotto"]] if name == "giotto-tda" else [[], ["giotto"]]
    )
    assert re.search(r"AGPL", (ROOT / "README.md").read_text())


def test_torch_is_an_extra_and_pinned_in_both_sets():
    """A bare `torch` may pull gigabytes of CUDA packages: reading a recording needs none, and both sets pin it."""
    assert not any(Requirement(text).name == "torch" for text in project()["dependencies"])
    for file in SETS:
        assert pinned(file)["torch"] == Version("2.13.0")
        assert not [name for name in pinned(file) if name.startswith("nvidia-")]


@pytest.mark.parametrize("file", SETS)
def test_a_tested_set_is_within_the_bounds_of_the_project(file):
    """One resolution holds everything: no pin of a tested set lies outside of what pyproject.toml allows."""
    versions = pinned(file)
    texts = [*project()["dependencies"], *(t for extra in project()["optional-dependencies"].values() for t in extra)]
    for requirement in map(Requirement, texts):
        if requirement.name in versions:
            assert versions[requirement.name] in requirement.specifier, requirement


def test_what_is_installed_is_a_tested_set():
    """The facts of this folder are measured on the sets that are pinned: zarr, xarray, Dask and torch of one."""
    names = ("zarr", "xarray", "dask", "distributed", "torch", "numpy", "scikit-learn")
    present = {name: installed(name) for name in names}
    tested = [{name: pinned(file).get(name) for name in names} for file in SETS]
    assert {name: Version(version.public) for name, version in present.items() if version} in tested
