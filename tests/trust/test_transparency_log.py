"""The log on disk: what it refuses, what survives a crash, what it hands out."""

import errno
import json
import os
from pathlib import Path

import pytest
from audited_run import RUN, START, AuditedRun, Consortium, copy_of, digest, usual_run

import fedmed.trust.audit.log as log_module
from fedmed.errors import ConfigurationError, FederationError, ProtocolError
from fedmed.trust.audit import leaves
from fedmed.trust.audit.checkpoint import log_origin, split_origin
from fedmed.trust.audit.merkle import verify_consistency
from fedmed.trust.audit.verify import verify_bundle


@pytest.fixture
def run(tmp_path):
    run = AuditedRun(tmp_path / "audit")
    run.start()
    run.round(1)
    return run


def reopen(run):
    run.log.close()
    run.log = run.open()
    return run.log


def files(run):
    return {path.name: path.read_bytes() for path in run.folder.iterdir()}


def test_a_log_goes_on_after_a_restart(run):
    head, model = run.log.checkpoint, run.log.model
    before = files(run)
    log = reopen(run)
    assert files(run) == before
    assert (log.checkpoint, log.model, log.size) == (head, model, 2)
    assert dict(log.models) == {0: digest("model 0"), 1: digest("model 1")}
    run.round(2)
    assert verify_bundle(run.folder, run.consortium.root_pem).rounds == 2


def test_a_refused_leaf_leaves_no_trace(run):
    before = files(run)
    for leaf, match in (
        (leaves.start_leaf(RUN, run.plan, digest("m"), run.roster), "starts twice"),
        (leaves.resumed_leaf("another-run", 0, digest("model 0")), "another run"),
        (leaves.abandoned_leaf(run.context(2, log_size=1), "late"), "another log"),
        (
            leaves.abandoned_leaf(run.context(2, cohort=("east", "north", "zoo")), "zoo"),
            "'zoo' was asked, and is no site",
        ),
        ({"type": "round", "time": START}, "other fields"),
        ({"type": "unheard of", "time": START}, "unknown type"),
        ({"time": START}, "no type"),
        ({"type": "start", "time": float("nan")}, "JSON"),
    ):
        with pytest.raises(ProtocolError, match=match):
            run.log.append(leaf)
    assert files(run) == before
    run.round(2)
    assert verify_bundle(run.folder, run.consortium.root_pem).leaves == 3


def test_a_log_begins_with_a_start(tmp_path):
    run = AuditedRun(tmp_path / "audit")
    with pytest.raises(ProtocolError, match="log is empty"):
        run.log.checkpoint  # noqa: B018
    with pytest.raises(ProtocolError, match="does not begin with the start"):
        run.log.append(leaves.roster_leaf(RUN, run.roster))
    with pytest.raises(ProtocolError, match="another run than the log"):
        run.log.append(leaves.start_leaf("another", run.plan, digest("m"), run.roster, START))
    run.start()


def test_a_server_whose_key_is_not_in_the_roster_cannot_sign(run):
    before = files(run)
    run.consortium.version = 2
    run.consortium.server = Consortium().server
    log = reopen(run)
    with pytest.raises(ProtocolError, match="key that this server signs with"):
        log.append(leaves.abandoned_leaf(run.context(2), "no key", run.time()))
    assert files(run) == before
    # With the roster that has the new key, it goes on.
    log.append(leaves.roster_leaf(RUN, run.consortium.signed_roster(), run.time()))
    run.witnesses = {}
    assert verify_bundle(run.folder, run.consortium.root_pem).rosters == 2


def test_only_one_process_writes(run):
    with pytest.raises(ConfigurationError, match="another process"):
        run.open()
    run.log.close()
    run.open().close()


def test_a_closed_log_is_not_written(run):
    context = run.context(2)
    run.log.close()
    run.log.close()
    with pytest.raises(ProtocolError, match="open it anew"):
        run.log.append(leaves.abandoned_leaf(context, "closed"))


def test_a_torn_last_line_is_cut_off_if_no_checkpoint_covers_it(run):
    before = files(run)
    run.round(2)
    after = files(run)
    run.log.close()
    line = after["log.jsonl"][len(before["log.jsonl"]) :]
    for kept in (1, len(line) // 2, len(line) - 1):
        (run.folder / "log.jsonl").write_bytes(before["log.jsonl"] + line[:kept])
        (run.folder / "checkpoints.jsonl").write_bytes(before["checkpoints.jsonl"])
        run.open().close()
        assert files(run) == before


def test_a_torn_line_that_a_checkpoint_covers_is_not_touched(run):
    run.log.close()
    path = run.folder / "log.jsonl"
    torn = path.read_bytes()[:-1]
    path.write_bytes(torn)
    with pytest.raises(ProtocolError, match="1 whole leaves, and the newest checkpoint signs 2"):
        run.open()
    assert path.read_bytes() == torn


def test_a_whole_leaf_without_a_checkpoint_gets_it(run):
    before = files(run)
    run.round(2)
    head = run.log.checkpoint
    run.log.close()
    # The crash came between the leaf and its checkpoint, or in the middle of the checkpoint.
    cosigned = files(run)["checkpoints.jsonl"].splitlines(keepends=True)[:-1]
    assert b"".join(cosigned).startswith(before["checkpoints.jsonl"])
    for torn in (b"", b'{"origin":'):
        (run.folder / "checkpoints.jsonl").write_bytes(b"".join(cosigned) + torn)
        log = run.open()
        assert log.checkpoint == head
        log.close()
    assert verify_bundle(run.folder, run.consortium.root_pem).rounds == 2


def test_leaves_that_were_changed_are_not_signed_for(run):
    run.log.close()
    path = run.folder / "log.jsonl"
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    changed = lines[1].replace(digest("model 1").encode(), digest("other").encode())
    path.write_bytes(lines[0] + changed)
    with pytest.raises(ProtocolError, match="line 2: not what its checkpoint signs"):
        run.open()
    # Two leaves more than checkpoints are no crash.
    path.write_bytes(text)
    checkpoints = run.folder / "checkpoints.jsonl"
    checkpoints.write_bytes(b"")
    with pytest.raises(ProtocolError, match="several leaves that no checkpoint covers"):
        run.open()


def test_a_full_disk_stops_the_run_and_loses_nothing(run, monkeypatch):
    real, left = os.write, [10]

    def write_some(descriptor, data):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, data[: left[0]])
        left[0] -= written
        return written

    leaf = leaves.abandoned_leaf(run.context(2), "reason", run.time())
    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(FederationError, match="No space left"):
        run.log.append(leaf)
    with pytest.raises(ProtocolError, match="open it anew"):
        run.log.append(leaf)
    monkeypatch.undo()
    assert reopen(run).size == 2
    run.log.append(leaf)
    assert verify_bundle(run.folder, run.consortium.root_pem).abandoned == 1


def test_leaf_and_checkpoint_are_synced_before_append_returns(run, monkeypatch):
    synced = []
    real = os.fsync

    def record(descriptor):
        real(descriptor)
        size = os.fstat(descriptor).st_size
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, size))

    leaf = leaves.abandoned_leaf(run.context(2), "reason", run.time())
    monkeypatch.setattr(os, "fsync", record)
    run.log.append(leaf)
    assert synced == [(name, len(files(run)[name])) for name in ("log.jsonl", "checkpoints.jsonl")]


def test_cosignatures_are_checked_before_they_are_kept(run):
    head = run.log.checkpoint
    good = {site: head.cosign(s) for site, s in run.consortium.signers.items()}
    before = files(run)
    for bad, match in (
        ({**good, "east": good["west"]}, "cosignature of 'east'"),
        ({"hub": head.cosign(run.consortium.server)}, "'hub' is no site"),
        ({"zoo": good["west"]}, "'zoo' is not in the roster"),
        ({"east": b""}, "cosignature of 'east'"),
    ):
        with pytest.raises(ProtocolError, match=match):
            run.log.cosigned(bad)
    assert files(run) == before
    run.log.cosigned({"east": good["east"]})
    once = files(run)
    run.log.cosigned({"east": good["east"]})
    assert files(run) == once
    run.log.cosigned(good)
    line = json.loads(files(run)["checkpoints.jsonl"].splitlines()[-1])
    assert sorted(line["cosignatures"]) == ["north", "south", "west"]
    reopen(run).cosigned(good)
    run.witnesses = {}
    report = verify_bundle(run.folder, run.consortium.root_pem)
    assert report.witnesses == ("east", "north", "south", "west")


def test_an_invitation_has_proofs_from_the_sites_size_and_the_newest(tmp_path):
    run = AuditedRun(tmp_path / "audit", witnesses=False)
    run.start()
    roots = {0: "", 1: run.log.root}
    for number in range(2, 41):
        run.log.append(leaves.abandoned_leaf(run.context(1), str(number), run.time()))
        roots[run.log.size] = run.log.root
    invitation = run.log.invitation(3)
    assert {int(size) for size in invitation["proofs"]} == {3, *range(24, 40)}
    for size, proof in invitation["proofs"].items():
        verify_consistency(
            int(size),
            bytes.fromhex(roots[int(size)]),
            40,
            bytes.fromhex(roots[40]),
            [bytes.fromhex(node) for node in proof],
        )
    assert run.log.invitation(40)["proofs"] == {}
    assert 0 not in map(int, run.log.invitation(0)["proofs"])
    with pytest.raises(ProtocolError, match="no 41 leaves"):
        run.log.invitation(41)


def test_the_clock_may_be_set_back(run):
    run.consortium.now = START - 500
    run.log.append(leaves.abandoned_leaf(run.context(2), "clock", run.time()))
    assert run.log.checkpoint.time == START + 60
    assert verify_bundle(run.folder, run.consortium.root_pem).last_time == START + 60


def test_the_rosters_file_is_the_newest_roster_also_after_a_crash(run):
    run.log.close()
    (run.folder / "roster.json").write_bytes(b"old")
    run.open().close()
    assert json.loads((run.folder / "roster.json").read_bytes()) == run.roster


def test_a_log_is_read_line_by_line_once(tmp_path, monkeypatch):
    run = usual_run(tmp_path / "audit")
    read = []
    real = log_module.read_leaf
    monkeypatch.setattr(log_module, "read_leaf", lambda line: read.append(line) or real(line))
    reopen(run)
    assert len(read) == run.log.size
    run.round(4)
    assert len(read) == run.log.size


def test_names_of_logs():
    assert split_origin(log_origin("hub", "run-1")) == ("hub", "run-1")
    for server, name in (("Hub", "run"), ("hub", ""), ("hub", "a/b"), ("hub", "a b"), ("", "run")):
        with pytest.raises(ProtocolError):
            log_origin(server, name)


def test_a_copied_log_can_be_opened_beside_the_first(run, tmp_path):
    twin = AuditedRun(copy_of(run.folder, tmp_path / "twin"), run.consortium)
    assert twin.log.checkpoint == run.log.checkpoint
