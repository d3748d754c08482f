"""The JSON schemas describe what is written, and refuse what is not a recording."""

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from recordings import describe, write_ranks

from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter

SCHEMAS = files("dynome_recorder") / "schemas"
GOLDEN = Path(__file__).parent / "golden-1.0"
RANKED = Path(__file__).parent / "golden-1.1"


def validator(name):
    schema = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())


def records(path):
    for file in sorted((path / "commits").iterdir()):
        for line in filter(None, file.read_text(encoding="utf-8").splitlines()):
            yield json.loads(line)


def check(path):
    """Hold a recording against the schemas; returns the kinds and the members of its records."""
    validator("run.json").validate(json.loads((path / "run.json").read_text(encoding="utf-8")))
    kinds, members = set(), set()
    for record in records(path):
        validator("commit.json").validate(record)
        kinds.add(record["kind"])
        members |= record.keys()
    return kinds, members


def described_members():
    return json.loads((SCHEMAS / "commit.json").read_text(encoding="utf-8"))["properties"].keys()


def test_the_golden_recordings_fit_the_schemas():
    assert check(GOLDEN)[0] == {"moment", "rewind", "loss"}
    kinds, members = check(RANKED)
    assert kinds == {"moment", "part"}
    assert {"world", "part_files", "skipped", "samples"} <= members <= described_members()
    assert "files" not in members


def test_repaired_recordings_of_ranks_fit_the_schemas(tmp_path):
    path = write_ranks(tmp_path / "run", steps=70, skipped={(66, 1): ("batches",)})
    (path / "commits/00000067.r1.json").unlink()
    (path / "store.zarr/batches/sites/a/activation/c.69.0.0").unlink()
    assert verify(path, repair=True).clean
    write_ranks(path, steps=71, first=70, world=1)
    kinds, members = check(path)
    assert kinds == {"moment", "part", "gap", "loss"}
    assert members <= described_members()
    assert {"files", "part_files", "batch_health"} <= members


def test_new_recordings_fit_the_schemas(make_recording):
    path = make_recording(epochs=70)
    for number in (3, 67):
        next(path.glob(f"commits/*{number:08d}.json"), path / "commits/segment-00000000-00000063.jsonl")
    (path / "commits/00000067.json").unlink()
    assert verify(path, repair=True).clean
    with RecordingWriter.open(path, describe({"hidden1": 12, "hidden2": 8}, samples=40)) as recording:
        recording.rewind(60)
    validator("run.json").validate(json.loads((path / "run.json").read_text(encoding="utf-8")))
    kinds = []
    for record in records(path):
        validator("commit.json").validate(record)
        kinds.append(record["kind"])
    assert {"moment", "gap", "rewind"} == set(kinds)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("format", {"name": "other", "version": "1.0"}),
        ("format", {"name": "dynome-recording", "version": "2.0"}),
        ("fingerprint", {"sites": {"a": {"path": "../../etc/passwd"}}, "weights": {}, "probe": {}}),
        ("checksum", "xyz"),
        ("schedules", {"probe": 3}),
    ],
)
def test_the_schema_of_a_run_refuses(member, value):
    document = json.loads((GOLDEN / "run.json").read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        validator("run.json").validate({**document, member: value})


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("kind", "other"),
        ("kind", "rewind"),
        ("kind", "loss"),
        ("kind", "gap"),
        ("sequence", -1),
        ("previous", "abc"),
        ("files", {"a": [1]}),
        ("files", {"a": [1, "not hex!"]}),
        ("metrics", {"epoch": {"loss": "nan"}}),
        ("health", {"a": {"nan": 0}}),
    ],
)
def test_the_schema_of_a_record_refuses(member, value):
    record = next(records(GOLDEN))
    with pytest.raises(jsonschema.ValidationError):
        validator("commit.json").validate({**record, member: value})


@pytest.mark.parametrize(
    ("rank", "changes"),
    [
        (0, {"world": 1}),
        (0, {"files": {"a": [1, "01234567"]}}),
        (0, {"skipped": []}),
        (0, {"samples": [3, 1]}),
        (0, {"samples": [-1]}),
        (1, {"rank": 0}),
        (1, {"world": 2}),
        (1, {"files": {"a": [1, "01234567"]}}),
        (1, {"kind": "rewind"}),
    ],
)
def test_the_schema_of_a_record_of_ranks_refuses(rank, changes):
    record = next(record for record in records(RANKED) if record["rank"] == rank and "part_files" in record)
    validator("commit.json").validate(record)
    with pytest.raises(jsonschema.ValidationError):
        validator("commit.json").validate({**record, **changes})


def test_the_schema_of_a_run_needs_what_belongs_together():
    document = json.loads((RANKED / "run.json").read_text(encoding="utf-8"))
    for member in ("samples", "batch_size", "batches"):
        fingerprint = {name: value for name, value in document["fingerprint"].items() if name != member}
        with pytest.raises(jsonschema.ValidationError):
            validator("run.json").validate({**document, "fingerprint": fingerprint})
