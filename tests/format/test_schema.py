"""The JSON schemas describe what is written, and refuse what is not a recording."""

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from recordings import describe

from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter

SCHEMAS = files("dynome_recorder") / "schemas"
GOLDEN = Path(__file__).parent / "golden-1.0"


def validator(name):
    schema = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())


def records(path):
    for file in sorted((path / "commits").iterdir()):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def test_the_golden_recording_fits_the_schemas():
    validator("run.json").validate(json.loads((GOLDEN / "run.json").read_text(encoding="utf-8")))
    kinds = set()
    for record in records(GOLDEN):
        validator("commit.json").validate(record)
        kinds.add(record["kind"])
    assert kinds == {"moment", "rewind", "loss"}


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
