"""The witness at a site: one history for each log, on disk before it is cosigned."""

import errno
import os
import stat

import pytest
from audited_run import RUN, AuditedRun, copy_of

import fedmed.durable_files as durable_files
from fedmed.errors import ConfigurationError, ProtocolError
from fedmed.trust.audit import leaves
from fedmed.trust.audit.checkpoint import Checkpoint, sign_checkpoint
from fedmed.trust.audit.witness import Witness, read_witness_state


class Meeting:
    """A server's log and one site's witness."""

    def __init__(self, folder):
        self.run = AuditedRun(folder / "audit", witnesses=False)
        self.run.start()
        self.log = self.run.log
        self.path = folder / "state" / "east.json"
        self.signer = self.run.consortium.signers["east"]
        self.witness = Witness(self.path, self.signer)
        self.keys = [self.run.consortium.server.key.public_key()]

    def grow(self, leaves_more=1, log=None):
        log = log or self.log
        for _ in range(leaves_more):
            log.append(leaves.abandoned_leaf(self.context(log), "more", self.run.time()))
        return log.checkpoint

    def context(self, log=None):
        log = log or self.log
        return self.run.context(1, log_size=log.size, log_root=log.root)

    def check(self, checkpoint, proof):
        signature = self.witness.check(checkpoint, proof, self.keys)
        checkpoint.verify_cosignature("east", [self.signer.key.public_key()], signature)
        return signature

    def cosign(self, witnessed, log=None):
        log = log or self.log
        invitation = log.invitation(witnessed)
        return self.witness.cosign(invitation, self.context(log), "hub", self.keys)

    def fork(self, folder):
        twin = AuditedRun(
            copy_of(self.run.folder, folder / "twin"), self.run.consortium, witnesses=False
        )
        return twin.log


@pytest.fixture
def meeting(tmp_path):
    return Meeting(tmp_path)


def test_a_growing_log_is_cosigned(meeting):
    assert meeting.witness.witnessed_size(meeting.log.origin) == 0
    meeting.check(meeting.log.checkpoint, [])
    for more in (1, 2, 5, 1):
        old = meeting.log.size
        head = meeting.grow(more)
        meeting.check(head, meeting.log.consistency(old))
        assert meeting.witness.witnessed_size(meeting.log.origin) == meeting.log.size
    # The same head once more, as in a second attempt at a round.
    assert meeting.check(head, []) == meeting.check(head, [])
    assert stat.S_IMODE(meeting.path.stat().st_mode) == 0o600


def test_a_rolled_back_log_is_refused(meeting):
    small = meeting.log.checkpoint
    meeting.grow(3)
    meeting.check(meeting.log.checkpoint, [])
    with pytest.raises(ProtocolError, match="shrunk from 4 leaves to 1"):
        meeting.check(small, [])
    assert meeting.witness.witnessed_size(meeting.log.origin) == 4


def test_two_trees_of_one_size_are_refused_and_kept_as_evidence(meeting, tmp_path):
    twin = meeting.fork(tmp_path)
    mine = meeting.grow(2)
    meeting.check(mine, [])
    meeting.run.consortium.now += 1
    other = meeting.grow(2, twin)
    assert mine.root != other.root
    with pytest.raises(ProtocolError, match="shows two histories"):
        meeting.check(other, [])
    state = read_witness_state(meeting.path.read_bytes())
    assert (state.heads[mine.origin], state.conflicts[mine.origin]) == (mine, other)
    # The first evidence stays, and the witness keeps to its history.
    with pytest.raises(ProtocolError):
        meeting.check(meeting.grow(1, twin), twin.consistency(3))
    assert read_witness_state(meeting.path.read_bytes()) == state
    meeting.check(meeting.grow(), meeting.log.consistency(3))


def test_a_larger_tree_of_another_history_is_refused(meeting, tmp_path):
    twin = meeting.fork(tmp_path)
    meeting.check(meeting.grow(2), [])
    meeting.run.consortium.now += 1
    larger = meeting.grow(4, twin)
    for proof in ([], twin.consistency(3), twin.consistency(1), meeting.log.consistency(3)):
        with pytest.raises(ProtocolError, match="two histories"):
            meeting.check(larger, proof)


def test_a_proof_for_a_head_that_the_site_never_saw_is_refused(meeting):
    head = meeting.grow(2)
    with pytest.raises(ProtocolError, match="never saw"):
        meeting.check(head, meeting.log.consistency(1))


def test_only_the_servers_signature_counts(meeting):
    head = meeting.log.checkpoint
    forged = sign_checkpoint(meeting.signer, head.origin, 9, bytes(32), head.time)
    with pytest.raises(ProtocolError, match="not signed by the server"):
        meeting.check(forged, [])
    with pytest.raises(ProtocolError, match="not signed by the server"):
        meeting.witness.check(head, [], [])
    assert not meeting.path.exists()


def test_the_state_is_on_disk_before_the_cosignature_returns(meeting, monkeypatch):
    meeting.check(meeting.log.checkpoint, [])
    before = meeting.path.read_bytes()
    head = meeting.grow()
    proof = meeting.log.consistency(1)

    def no_space(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable_files, "append_durably", no_space)
    with pytest.raises(ConfigurationError, match=r"east.json: .*No space left"):
        meeting.check(head, proof)
    assert meeting.path.read_bytes() == before
    monkeypatch.undo()

    order = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append("synced") or real(descriptor))
    monkeypatch.setattr(Checkpoint, "cosign", lambda self, signer: order.append("cosigned") or b"")
    meeting.witness.check(head, proof, meeting.keys)
    # The file, then the folder that has its name.
    assert order == ["synced", "synced", "cosigned"]
    assert meeting.witness.witnessed_size(head.origin) == 2


def test_another_process_sees_the_same_state(meeting):
    other = Witness(meeting.path, meeting.signer)
    meeting.check(meeting.grow(2), [])
    assert other.witnessed_size(meeting.log.origin) == 3
    head = meeting.grow()
    other.check(head, meeting.log.consistency(3), meeting.keys)
    assert meeting.witness.witnessed_size(meeting.log.origin) == 4


@pytest.mark.parametrize("text", ["", "{}", '{"heads":{}}', "no json\n", "[]"])
def test_a_damaged_state_stops_the_site(meeting, text):
    meeting.path.parent.mkdir()
    meeting.path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"east.json: .*it is damaged"):
        meeting.check(meeting.log.checkpoint, [])


def test_a_state_is_for_one_site(meeting):
    meeting.check(meeting.log.checkpoint, [])
    stranger = Witness(meeting.path, meeting.run.consortium.signers["west"])
    with pytest.raises(ConfigurationError, match="another site's"):
        stranger.check(meeting.log.checkpoint, [], meeting.keys)


class TestInvitation:
    """``cosign``: what comes with the request of a round."""

    def test_it_is_cosigned_whatever_the_server_knows_of_the_site(self, meeting):
        meeting.cosign(0)
        meeting.grow(2)
        # The server did not get the first cosignature: it thinks that the site has seen nothing.
        meeting.cosign(0)
        meeting.grow(30)
        meeting.cosign(3)
        meeting.cosign(3)
        assert meeting.witness.witnessed_size(meeting.log.origin) == 33

    def test_a_gap_in_the_proofs_is_no_accusation(self, meeting):
        meeting.grow(2)
        meeting.cosign(0)
        meeting.grow(30)
        with pytest.raises(ProtocolError, match="no proof that the log of 33 leaves begins with"):
            meeting.cosign(0)
        assert read_witness_state(meeting.path.read_bytes()).conflicts == {}
        meeting.cosign(3)

    def test_it_must_be_this_servers_log_of_this_run(self, meeting):
        invitation, context = meeting.log.invitation(0), meeting.context()
        with pytest.raises(ProtocolError, match="another log"):
            meeting.witness.cosign(invitation, context, "hub2", meeting.keys)
        other = meeting.run.context(1, run="another-run")
        with pytest.raises(ProtocolError, match="another log"):
            meeting.witness.cosign(invitation, other, "hub", meeting.keys)
        assert RUN in meeting.log.origin

    @pytest.mark.parametrize("changes", [{"log_size": 2}, {"log_root": "0" * 64}])
    def test_it_must_be_the_contexts_head(self, meeting, changes):
        context = meeting.run.context(1, **changes)
        with pytest.raises(ProtocolError, match="another one than the round's context"):
            meeting.witness.cosign(meeting.log.invitation(0), context, "hub", meeting.keys)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda invitation: None,
            lambda invitation: [],
            lambda invitation: {},
            lambda invitation: {**invitation, "more": 1},
            lambda invitation: {**invitation, "proofs": []},
            lambda invitation: {**invitation, "proofs": {"1": "00"}},
            lambda invitation: {**invitation, "proofs": {"1": ["00"]}},
            lambda invitation: {**invitation, "proofs": {"1": [1]}},
            lambda invitation: {**invitation, "proofs": {"1": ["00" * 32] * 200}},
            lambda invitation: {**invitation, "checkpoint": None},
            lambda invitation: {
                **invitation,
                "checkpoint": {**invitation["checkpoint"], "size": True},
            },
            lambda invitation: {
                **invitation,
                "checkpoint": {
                    **invitation["checkpoint"],
                    "signature": invitation["checkpoint"]["signature"].upper(),
                },
            },
        ],
    )
    def test_a_malformed_one_is_refused(self, meeting, spoil):
        meeting.cosign(0)
        meeting.grow()
        with pytest.raises(ProtocolError):
            meeting.witness.cosign(
                spoil(meeting.log.invitation(1)), meeting.context(), "hub", meeting.keys
            )
        assert meeting.witness.witnessed_size(meeting.log.origin) == 1
        meeting.cosign(1)
