"""Logs of several ranks: what is committed, held against a plain reader written from FORMAT.md."""

import itertools
from dataclasses import replace

import naive_log
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage import commits, following
from dynome_recorder.storage.commits import fold_segments, read_log, uncommitted_records, write_record
from dynome_recorder.storage.following import LogFollower
from dynome_recorder.storage.logscan import scan_log
from dynome_recorder.storage.records import GENESIS, CommitRecord, chain_link, join_parts, replay_log
from dynome_recorder.storage.views import Views, build_views

STREAMS = ("probe", "weights", "batches")
RUN = {
    "fingerprint": {
        "sites": {"a": {}},
        "weights": {},
        "batches": {"a": {}},
        "samples": {},
        "parts": 3,
        "probe": {},
    }
}


@st.composite
def planned_moments(draw):
    """What a log holds, in order: moments of several ranks, or how many moments a rewind goes back."""
    entries = []
    for _ in range(draw(st.integers(1, 12))):
        if entries and draw(st.integers(0, 5)) == 0:
            entries.append(draw(st.integers(0, 4)))
            continue
        world = draw(st.integers(1, 3))
        streams = draw(st.sets(st.sampled_from(STREAMS)))
        ranks = []
        for rank in range(world):
            may_skip = sorted(streams - {"weights"} if rank else streams)
            skips = may_skip and draw(st.integers(0, 3)) == 0
            ranks.append(
                {
                    "skipped": draw(st.sets(st.sampled_from(may_skip), max_size=1)) if skips else set(),
                    "samples": draw(st.integers(0, 4)) if "batches" in streams else 0,
                }
            )
        entries.append((streams, ranks))
    return entries


def build(entries):
    """Return the records of every rank, each rank's in the order in which it writes them."""
    written: dict[int, list[CommitRecord]] = {}
    lengths = dict.fromkeys(STREAMS, 0)
    moments: list[int] = []
    for sequence, entry in enumerate(entries):
        if isinstance(entry, int):
            keep = ([-1, *moments])[max(0, len(moments) - entry)]
            add(written, CommitRecord(sequence=sequence, previous="", kind="rewind", time=0.0, keep=keep))
            continue
        streams, ranks = entry
        moments.append(sequence)
        snapshots = {stream: lengths[stream] for stream in STREAMS if stream in streams}
        for rank, what in enumerate(ranks):
            files = {
                f"{stream}/sites/a/activation/c.{index}.{rank}.0": (sequence + rank, f"{index:08x}")
                for stream, index in snapshots.items()
                if stream not in what["skipped"] and not (stream == "weights" and rank)
            }
            record = CommitRecord(
                sequence=sequence,
                previous="",
                kind="part" if rank else "moment",
                time=float(sequence),
                rank=rank,
                epoch=sequence // 2,
                step=sequence,
                files=files,
                skipped=tuple(sorted(what["skipped"])),
                samples=(what["samples"],) if what["samples"] and "batches" not in what["skipped"] else (),
                batch_health={"a": {"nan": 1 + rank}} if "batches" in snapshots else {},
            )
            if not rank:
                record = replace(
                    record, world=len(ranks), snapshots=snapshots, metrics={"epoch": {"loss": float(sequence)}}
                )
            add(written, record)
        for stream in streams:
            lengths[stream] += 1
    return written


def add(written, record):
    chain = written.setdefault(record.rank, [])
    record = replace(record, previous=chain_link(chain[-1] if chain else None))
    chain.append(CommitRecord.decode(record.encode(), where="x"))


def check_equals_twin(folder):
    """Hold everything that a log says against the twin; returns how many records are committed."""
    told = naive_log.read_committed(folder)
    records = read_log(folder)
    state = replay_log(records)
    assert [record.sequence for record in records] == told["committed"]
    assert [record.sequence for record in state.live] == told["live"]
    assert {stream: list(values) for stream, values in state.status.items()} == told["status"]
    assert state.files == told["files"]
    views = build_views(RUN, state)
    samples = [[*row, 0, 0, 0][:3] for row in told["samples"]]
    assert views.columns["batches/samples"].rows(0, len(samples)).tolist() == samples
    assert views.columns["batches/status"].rows(0, len(samples)).tolist() == told["status"]["batches"]
    one_by_one = Views(RUN)
    for record in records:
        one_by_one.append(record)
    assert len(one_by_one.columns["probe/epoch"]) == len(told["status"]["probe"])
    for stream in STREAMS:
        gaps = {index for index, value in enumerate(told["status"][stream]) if value == 2}
        assert gaps == {*state.skipped(stream), *state.lost(stream)}
    return len(records)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(entries=planned_moments(), data=st.data())
def test_any_beginning_in_any_interleaving_is_a_committed_prefix(tmp_path_factory, entries, data):
    """Ranks write each in its own order and otherwise as they like, fold what all have, and are cut off anywhere."""
    path = tmp_path_factory.mktemp("log")
    folder = path / "commits"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for module in (commits, following):
            patch.setattr(module, "SEGMENT_LENGTH", 3)
        waiting = {rank: list(chain) for rank, chain in build(entries).items()}
        follower, followed, length = LogFollower(path), [], 0
        for _ in range(data.draw(st.integers(0, sum(map(len, waiting.values()))), label="records written")):
            rank = data.draw(st.sampled_from([rank for rank, chain in waiting.items() if chain]), label="rank")
            write_record(folder, waiting[rank].pop(0))
            if data.draw(st.integers(0, 2), label="look") == 0:
                before, length = length, check_equals_twin(folder)
                assert length >= before  # what was committed once stays so
                followed += follower.read()
                assert followed == list(read_log(folder)) == follower.records
            if data.draw(st.integers(0, 4), label="fold") == 0:
                folded = len(read_log(folder))
                for other in range(data.draw(st.integers(0, 3), label="ranks that fold")):
                    fold_segments(folder, length=folded, rank=other)
        length = check_equals_twin(folder)
        scan = scan_log(path, None)
        assert [finding for finding in scan.findings if finding.severity == "damage"] == []
        assert scan.length == length == len(scan.records)
        assert tuple(scan.records.values()) == read_log(folder)
        # The ragged end is swept, and the log goes on.
        for leftover in uncommitted_records(folder, length):
            leftover.unlink()
        assert check_equals_twin(folder) == length
        assert scan_log(path, None).findings == [
            finding for finding in scan_log(path, None).findings if "folded" in finding.problem
        ]


@settings(max_examples=150, deadline=None)
@given(entries=planned_moments(), data=st.data())
def test_a_part_that_was_committed_is_missed(tmp_path_factory, entries, data):
    """Of a rank that has committed later moments, or up to what was published, nothing may be missing."""
    path = tmp_path_factory.mktemp("log")
    folder = path / "commits"
    folder.mkdir()
    written = build(entries)
    for record in itertools.chain(*written.values()):
        write_record(folder, record)
    last = written[0][-1]
    parts = [record for rank, chain in written.items() if rank for record in chain]
    if not parts:
        return
    victim = data.draw(st.sampled_from(parts))
    commits.record_path(folder, victim.sequence, victim.rank).unlink()
    assert (victim.rank, victim.sequence) in scan_log(path, (last.sequence, last.checksum)).missing_parts
    is_last = victim is written[victim.rank][-1]
    assert ((victim.rank, victim.sequence) in scan_log(path, None).missing_parts) == (not is_last)
    if is_last:
        assert len(read_log(folder)) == victim.sequence
    else:
        with pytest.raises(CorruptRecordingError, match=rf"\.r{victim.rank}\.json: the chain"):
            read_log(folder)


def two_ranks(folder, length, *, other=None):
    """Write moments of two ranks; rank 1 writes `other` of them."""
    folder.mkdir()
    chains = build([({"probe"}, [{"skipped": set(), "samples": 0}] * 2)] * length)
    for record in itertools.chain(chains[0], chains[1][: length if other is None else other]):
        write_record(folder, record)
    return chains


def test_a_lost_segment_of_another_rank_is_damage_also_where_nothing_was_published(tmp_path):
    """Only what all ranks have committed is folded by rank 0: the end is not ragged there."""
    folder = tmp_path / "commits"
    two_ranks(folder, 66)
    for rank in range(2):
        fold_segments(folder, length=66, rank=rank)
    for file in folder.glob("*.r1.json*"):
        file.unlink()
    with pytest.raises(CorruptRecordingError, match=r"00000000\.r1\.json: missing"):
        read_log(folder)
    scan = scan_log(tmp_path, None)
    assert scan.missing_parts == [(1, sequence) for sequence in range(64)]
    assert scan.length == 64  # behind the segment it may be a ragged end


@pytest.mark.parametrize("rank", [0, 1])
def test_folding_deletes_only_what_the_segment_holds(tmp_path, rank):
    folder = tmp_path / "commits"
    chains = two_ranks(folder, 64)
    fold_segments(folder, length=64, rank=rank)
    stray = write_record(folder, replace(chains[rank][5], step=9))
    same = write_record(folder, chains[rank][6])
    fold_segments(folder, length=64, rank=rank)
    assert commits.record_path(folder, stray.sequence, rank).is_file()
    assert not commits.record_path(folder, same.sequence, rank).exists()


@pytest.mark.parametrize("change", [{"epoch": 7}, {"step": 7}])
def test_a_part_of_another_moment_is_refused(tmp_path, change):
    folder = tmp_path / "commits"
    chains = two_ranks(folder, 3, other=2)
    write_record(folder, replace(chains[1][2], **change))
    with pytest.raises(CorruptRecordingError, match="record 2 of rank 1 is of another moment"):
        read_log(folder)
    (finding,) = scan_log(tmp_path, None).findings
    assert "another moment" in finding.problem
    assert not finding.repairable


@pytest.mark.parametrize(
    ("name", "rank", "change", "match"),
    [
        ("00000002.json", 0, {"kind": "part"}, "unknown kind of record 'part'"),
        ("00000002.r1.json", 1, {"kind": "moment"}, "unknown kind of record 'moment'"),
        ("00000002.r1.json", 1, {"rank": 2}, "of rank 2 in place of 1"),
        ("00000002.r1.json", 1, {"previous": GENESIS}, "the chain of commits is broken"),
    ],
)
def test_records_of_ranks_belong_where_they_are(tmp_path, name, rank, change, match):
    folder = tmp_path / "commits"
    chains = two_ranks(folder, 3)
    (folder / name).write_bytes(replace(chains[rank][2], **change).encode())
    with pytest.raises(CorruptRecordingError, match=match):
        read_log(folder)


def test_the_record_of_a_whole_moment_sums_up(tmp_path):
    folder = tmp_path / "commits"
    folder.mkdir()
    ranks = [{"skipped": set(), "samples": 3}, {"skipped": {"probe"}, "samples": 0}, {"skipped": set(), "samples": 2}]
    for record in itertools.chain(*build([({"probe", "batches"}, ranks)]).values()):
        write_record(folder, record)
    (whole,) = read_log(folder)
    assert whole.samples == (3, 0, 2)
    assert whole.skipped == ("probe",)
    assert whole.batch_health == {"a": {"nan": 6}}
    assert len(whole.files) == 5
    assert whole.lost_ranks == ()
    assert whole.missing_streams == {"probe"}


def test_a_gap_in_place_of_a_part_takes_what_has_parts(tmp_path):
    ranks = [{"skipped": set(), "samples": 3}] * 2
    ((moment,), (part,)) = build([({"probe", "batches", "weights"}, ranks)]).values()
    gap = CommitRecord(sequence=0, previous=GENESIS, kind="gap", time=0.0, rank=1, replaces=part.checksum)
    whole = join_parts(moment, {1: gap})
    assert whole is not None
    assert whole.lost_ranks == (1,)
    assert whole.samples == (3, 0)
    state = replay_log([whole])
    assert state.status == {"probe": (2,), "weights": (0,), "batches": (2,)}
    assert (state.lost("probe"), state.skipped("probe")) == ((0,), ())
    assert join_parts(moment, {}) is None
    assert join_parts(moment, {}, lost=frozenset({1})) == whole


def test_a_folder_that_grows_while_it_is_listed_is_listed_again(tmp_path, monkeypatch):
    """A listing may show a record that is newer than one that it does not show."""
    folder = tmp_path / "commits"
    two_ranks(folder, 4)
    real, hidden = commits.stored_lines, iter(["00000002.json", "00000001.r1.json"])

    def partial(listed):
        found = real(listed)
        name = next(hidden, None)
        return {rank: [line for line in lines if line.path.name != name] for rank, lines in found.items()}

    monkeypatch.setattr(commits, "stored_lines", partial)
    assert len(read_log(folder)) == 4


def test_damage_that_stays_is_told_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "commits"
    two_ranks(folder, 4)
    (folder / "00000001.r1.json").unlink()
    calls = []
    real = commits.stored_lines
    monkeypatch.setattr(commits, "stored_lines", lambda listed: calls.append(listed) or real(listed))
    with pytest.raises(CorruptRecordingError, match=r"r1\.json: the chain of commits is broken"):
        read_log(folder)
    assert len(calls) == 2
