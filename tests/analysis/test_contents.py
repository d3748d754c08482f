"""The package's table of contents."""

import importlib.util

import pytest

import dynome_analysis


def test_no_module_stands_where_a_public_name_is() -> None:
    """``import dynome_analysis.analyze`` would replace the function by the module."""
    for name in dynome_analysis.__all__:
        assert importlib.util.find_spec(f"dynome_analysis.{name}") is None, name


def test_contents_are_listed_and_anything_else_is_an_attribute_error() -> None:
    assert set(dynome_analysis.__all__) <= set(dir(dynome_analysis))
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = dynome_analysis.nope
