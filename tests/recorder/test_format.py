"""Sealed documents, names and number encodings."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError, UnsupportedVersionError
from dynome_recorder.storage.format import (
    bfloat16_to_float32,
    check_version,
    decode_number,
    encode_component,
    seal,
    storage_dtype,
    unseal,
)
from dynome_recorder.storage.layout import check_node, group_document, node_bytes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.text(min_size=1).filter(lambda key: key != "checksum"), JSON, min_size=1, max_size=5)


@given(DOCUMENTS, st.booleans())
@settings(deadline=None)
def test_a_sealed_document_reads_back(document, indent):
    data = seal(document, indent=indent)
    read = unseal(data, where="x", indent=indent)
    del read["checksum"]
    assert read == document
    assert list(read) == list(document)
    assert json.loads(data)


@given(DOCUMENTS, st.booleans(), st.data())
@settings(deadline=None, max_examples=200)
def test_any_flipped_bit_of_a_sealed_document_is_found(document, indent, data):
    sealed = bytearray(seal(document, indent=indent))
    position = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[position // 8] ^= 1 << position % 8
    with pytest.raises(CorruptRecordingError, match=r"^some/file: "):
        unseal(bytes(sealed), where="some/file", indent=indent)


@given(DOCUMENTS, st.booleans(), st.data())
@settings(deadline=None)
def test_any_truncation_of_a_sealed_document_is_found(document, indent, data):
    sealed = seal(document, indent=indent)
    with pytest.raises(CorruptRecordingError):
        unseal(sealed[: data.draw(st.integers(0, len(sealed) - 1))], where="x", indent=indent)


def test_every_flipped_bit_of_a_node_is_found():
    sealed = node_bytes(group_document({"element": "group"}))
    assert check_node(sealed)
    for position in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << position % 8
        assert not check_node(bytes(changed))


def test_numbers_that_json_lacks_are_spelled():
    document = {
        "a": float("nan"),
        "b": float("inf"),
        "c": -np.inf,
        "d": np.float32(0.5),
        "e": np.int64(3),
        "f": np.True_,
    }
    read = unseal(seal(document), where="x")
    assert [read[name] for name in "abcdef"] == ["NaN", "Infinity", "-Infinity", 0.5, 3, True]
    assert np.isnan(decode_number(read["a"]))
    assert [decode_number(read[name]) for name in "bcd"] == [np.inf, -np.inf, 0.5]


def test_collections_become_plain():
    read = unseal(seal({"a": (1, 2), "b": np.arange(3), "c": {"z", "y"}}), where="x")
    assert (read["a"], read["b"], read["c"]) == ([1, 2], [0, 1, 2], ["y", "z"])


@pytest.mark.parametrize("value", [object(), b"bytes", {1: "a"}])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(InvalidArgumentError):
        seal({"a": value})


def test_an_empty_document_is_refused():
    with pytest.raises(InvalidArgumentError, match="at least one member"):
        seal({"checksum": "x"})


def test_text_that_is_sealed_but_no_json_object_is_refused():
    from dynome_recorder.storage.format import crc32

    for covered in (b"{oops", b"[1"):
        data = covered + f',"checksum":"{crc32(covered)}"}}\n'.encode()
        with pytest.raises(CorruptRecordingError, match="not JSON"):
            unseal(data, where="x")


@pytest.mark.parametrize(
    ("declared", "error"),
    [
        (None, CorruptRecordingError),
        ({"name": "other", "version": "1.0"}, CorruptRecordingError),
        ({"name": "dynome-recording", "version": "one"}, CorruptRecordingError),
        ({"name": "dynome-recording", "version": "2.0"}, UnsupportedVersionError),
        ({"name": "dynome-recording", "version": "0.9"}, UnsupportedVersionError),
    ],
)
def test_versions_that_cannot_be_read(declared, error):
    with pytest.raises(error, match=r"^run\.json: "):
        check_version(declared, where="run.json")


def test_a_newer_minor_version_is_read_and_a_newer_major_one_asks_for_an_update():
    assert check_version({"name": "dynome-recording", "version": "1.7"}, where="x") == "1.7"
    with pytest.raises(UnsupportedVersionError, match="update dynome"):
        check_version({"name": "dynome-recording", "version": "2.0"}, where="x")


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
@settings(deadline=None, max_examples=300)
def test_names_become_safe_components_and_stay_different(one, other):
    reserved = frozenset({"step", "status"})
    a, b = encode_component(one, reserved=reserved), encode_component(other, reserved=reserved)
    assert (a == b) == (one == other)
    for name in (a, b):
        assert not set(name) & set('/\\:*?"<>| ')
        assert name not in {".", "..", "zarr.json", "step", "status"}
        assert not name.startswith("__")
        assert not name.endswith(".partial")


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("features.0", "features.0"),
        ("block@1", "block@1"),
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        (".", "%2E"),
        ("zarr.json", "%7Aarr.json"),
        ("__init__", "%5F_init__"),
        ("x.partial", "x.partia%6C"),
        ("ä", "%C3%A4"),
        ("100%", "100%25"),
    ],
)
def test_encoded_names(name, encoded):
    assert encode_component(name) == encoded


def test_names_that_no_file_can_have_are_refused():
    with pytest.raises(InvalidArgumentError, match="empty"):
        encode_component("")
    with pytest.raises(InvalidArgumentError, match="too long"):
        encode_component("x" * 241)


def test_dtypes():
    assert storage_dtype("bfloat16") == "uint16"
    assert storage_dtype("float16") == "float16"
    with pytest.raises(InvalidArgumentError, match="float8"):
        storage_dtype("float8")


def test_bfloat16_is_exact():
    values = np.array([0.0, -0.0, 1.0, -2.5, 3.0e38, np.inf, -np.inf], dtype=np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(bfloat16_to_float32(bits), expected)
    assert np.isnan(bfloat16_to_float32(np.array([0x7FC0], dtype=np.uint16)))[0]
