"""The audit of bundles: what holds is counted, whatever does not is found."""

import json
import shutil
import zipfile

import pytest
from audited_run import RUN, START, AuditedRun, Consortium, copy_of, digest, usual_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmed.errors import ConfigurationError, FedmedError, ProtocolError
from fedmed.trust.audit import leaves
from fedmed.trust.audit.checkpoint_lines import CheckpointLines
from fedmed.trust.audit.merkle import leaf_hash
from fedmed.trust.audit.verify import verify_bundle
from fedmed.trust.canonical import canonical_json
from fedmed.trust.envelope import Part, seal

FILES = ("log.jsonl", "checkpoints.jsonl", "roster.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run that no test changes."""
    return usual_run(tmp_path_factory.mktemp("run") / "audit")


@pytest.fixture(scope="module")
def scratch(run, tmp_path_factory):
    """A folder whose files a test may spoil, if it puts them back."""
    return copy_of(run.folder, tmp_path_factory.mktemp("scratch") / "audit")


@pytest.fixture
def spoilt(run, tmp_path):
    """A copy of the bundle to be spoilt."""
    return copy_of(run.folder, tmp_path / "spoilt")


def verify(run, folder=None, **arguments):
    return verify_bundle(folder or run.folder, run.consortium.root_pem, **arguments)


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def write_lines(path, lines):
    path.write_bytes(b"".join(lines))


def test_a_whole_bundle_holds_and_everything_is_counted(run):
    report = verify(run, site="west")
    assert (report.leaves, report.rosters, report.rounds, report.evaluations) == (8, 1, 4, 1)
    assert (report.abandoned, report.resumed, report.open_rounds) == (1, 1, 0)
    # Three rounds and an evaluation of 4 sites, one round without west; the same for confirmations.
    assert report.masked == report.confirmations == 4 * 4 + 3
    assert report.cosignatures == 5 * 4
    # Each of the 5 rounds was agreed on the head before it.
    assert report.witnessed == 7
    assert report.witnesses == ("east", "north", "south", "west")
    assert report.model == digest("model 3")
    assert report.origin == f"hub/{RUN}"
    assert report.head == run.log.root
    west, east = report.sites["west"], report.sites["east"]
    assert (west.asked, west.delivered, west.confirmed, west.cosigned) == (5, 4, 4, 5)
    # 0.25 more with each masked input that the site made, the evaluation's included.
    assert (west.epsilon, east.epsilon) == (1.0, 1.25)
    assert west.delta == 1e-5
    assert report.signatures == 8 + 1 + 19 + 19 + 20


def test_a_zip_file_and_the_runs_folder_are_bundles_too(run, tmp_path):
    expected = verify(run)
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", run.folder.parent, "audit")
    assert verify(run, tmp_path / "bundle.zip") == expected
    assert archive.endswith("bundle.zip")
    assert verify(run, run.folder.parent) == expected


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_changed_byte_is_found(run, scratch, data):
    name = data.draw(st.sampled_from(FILES))
    original = (run.folder / name).read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != original[at]))
    path = scratch / name
    path.write_bytes(original[:at] + bytes([byte]) + original[at + 1 :])
    try:
        with pytest.raises(ProtocolError):
            verify(run, scratch)
    finally:
        path.write_bytes(original)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_zip_file_is_refused_or_says_the_same(run, scratch, data):
    path = scratch.parent / "bundle.zip"
    if not path.exists():
        shutil.make_archive(str(path.with_suffix("")), "zip", run.folder.parent, "audit")
        (scratch.parent / "original.zip").write_bytes(path.read_bytes())
    original = (scratch.parent / "original.zip").read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    path.write_bytes(
        original[:at] + bytes([original[at] ^ data.draw(st.integers(1, 255))]) + original[at + 1 :]
    )
    try:
        report = verify(run, path)
    except FedmedError:
        return
    # A byte of the zip file's own book-keeping, such as a date.
    assert report == verify(run)


def test_control_the_unchanged_copy_holds(run, scratch):
    assert verify(run, scratch) == verify(run)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_cut_or_added_text_is_found(run, scratch, data):
    name = data.draw(st.sampled_from(FILES))
    original = (run.folder / name).read_bytes()
    path = scratch / name
    at = data.draw(st.integers(0, len(original) - 1))
    added = data.draw(st.sampled_from([b"", b" ", b"\n", b"{}\n", b"\0"]))
    path.write_bytes(original[:at] if added == b"" else original[:at] + added + original[at:])
    try:
        with pytest.raises(ProtocolError):
            verify(run, scratch)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("name", ["log.jsonl", "checkpoints.jsonl"])
@pytest.mark.parametrize("change", ["removed", "duplicated", "swapped with the next"])
def test_each_line_is_where_it_was_put(run, spoilt, name, change):
    path = spoilt / name
    original = lines_of(path)
    for at in range(len(original) - (change == "swapped with the next")):
        if change == "removed":
            changed = original[:at] + original[at + 1 :]
        elif change == "duplicated":
            changed = [*original[:at], original[at], *original[at:]]
        else:
            changed = [*original[:at], original[at + 1], original[at], *original[at + 2 :]]
        write_lines(path, changed)
        with pytest.raises(ProtocolError):
            verify(run, spoilt)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(run, spoilt, name):
    (spoilt / name).unlink()
    with pytest.raises((ProtocolError, ConfigurationError), match=name):
        verify(run, spoilt)


@pytest.mark.parametrize(("field", "value"), [("model_out", digest("swapped")), ("time", START)])
def test_what_no_site_signs_is_protected_by_the_head(run, spoilt, field, value):
    path = spoilt / "log.jsonl"
    lines = lines_of(path)
    write_lines(
        path, [*lines[:-1], canonical_json({**json.loads(lines[-1]), field: value}) + b"\n"]
    )
    with pytest.raises(ProtocolError, match=r"log.jsonl, line 8, round 3 .*signed another leaf"):
        verify(run, spoilt)


def test_the_last_head_is_protected_by_the_servers_signature(run, spoilt):
    path = spoilt / "checkpoints.jsonl"
    lines = lines_of(path)
    head = json.loads(lines[-1])
    later = {**head, "time": head["time"] + 1}
    write_lines(path, [*lines[:-1], canonical_json(later) + b"\n"])
    with pytest.raises(ProtocolError, match=r"checkpoints.jsonl, size 8: .*not signed by the serv"):
        verify(run, spoilt)


def test_checkpoints_and_cosignatures_come_in_order(run):
    first, signed, second, *_ = lines_of(run.folder / "checkpoints.jsonl")
    early = {**json.loads(second), "time": START - 1}
    other = {**json.loads(signed), "size": 2}
    for sequence, match in (
        ([first, canonical_json(early)], "older than the one before"),
        ([first, canonical_json(other)], "do not follow the checkpoint"),
        ([signed], "do not follow the checkpoint"),
        ([second], "size 2 comes where that of size 1 is due"),
        ([first, canonical_json({**json.loads(second), "origin": "hub/other"})], "another log"),
    ):
        lines = CheckpointLines()
        for line in sequence[:-1]:
            lines.read(line.removesuffix(b"\n"))
        with pytest.raises(ProtocolError, match=match):
            lines.read(sequence[-1].removesuffix(b"\n"))


def test_a_line_that_no_checkpoint_covers_is_found(run, spoilt):
    with (spoilt / "log.jsonl").open("ab") as file:
        file.write(lines_of(spoilt / "log.jsonl")[-1])
    with pytest.raises(ProtocolError, match=r"log.jsonl, line 9: .* no checkpoint"):
        verify(run, spoilt)


def test_another_root_is_not_believed(run):
    with pytest.raises(ProtocolError, match=r"log.jsonl, line 1: .*not signed by the root"):
        verify_bundle(run.folder, Consortium().root_pem)


def test_what_is_no_bundle_or_root_is_said_so(run, tmp_path):
    with pytest.raises(ConfigurationError, match="no bundle"):
        verify(run, tmp_path)
    (tmp_path / "file.zip").write_bytes(b"no zip")
    with pytest.raises(ConfigurationError, match="neither a folder nor a zip"):
        verify(run, tmp_path / "file.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ConfigurationError, match=r"not one log.jsonl"):
        verify(run, tmp_path / "empty.zip")
    with pytest.raises(ConfigurationError, match="no certificate"):
        verify_bundle(run.folder, b"no certificate")


class Forger(AuditedRun):
    """A server that signs for leaves which its own log refuses: what only the audit can find."""

    def forge(self, leaf, edit=None):
        """Add a leaf as it is, with checkpoint, past all checks of the log."""
        fields = json.loads(canonical_json(leaf))
        if edit:
            edit(fields)
        log = self.log
        line = canonical_json(fields)
        log._tree.append(leaf_hash(line))
        log._write(log._log, line + b"\n")
        return log._sign(self.time())


@pytest.fixture
def forger(tmp_path):
    forger = Forger(tmp_path / "audit")
    forger.start()
    forger.round(1)
    return forger


def expect(forger, match):
    with pytest.raises(ProtocolError, match=match):
        verify(forger)


def test_control_what_the_forger_leaves_alone_holds(forger):
    forger.forge(forger.round_leaf(2))
    assert verify(forger).rounds == 2


def test_a_message_over_another_round_is_found(forger):
    forger.consortium.now += 60
    first = json.loads(lines_of(forger.folder / "log.jsonl")[1])

    def replay(fields):
        fields["masked"]["north"] = first["masked"]["north"]

    forger.forge(forger.round_leaf(2), replay)
    expect(forger, r"log.jsonl, line 3, round 2 \(train\): .*'masked' of 'north'.*another context")


def test_a_message_of_another_site_is_found(forger):
    def swap(fields):
        fields["masked"]["north"] = fields["masked"]["south"]

    forger.forge(forger.round_leaf(2), swap)
    expect(forger, "'masked' of 'north' does not hold: .*another site")


def test_a_confirmation_in_place_of_a_masked_input_is_found(forger):
    def swap(fields):
        fields["masked"]["north"] = fields["confirmed"]["north"]

    forger.forge(forger.round_leaf(2), swap)
    expect(forger, "'masked' of 'north' does not hold: .*another type")


def test_a_signature_with_another_key_is_found(forger):
    forger.consortium.signers["north"] = Consortium().signers["north"]
    forger.witnesses["north"]._signer = forger.consortium.signers["north"]
    leaf = forger.round_leaf
    with pytest.raises(ProtocolError, match="cosignature of 'north'"):
        leaf(2)
    # The forger leaves the bad cosignature out, and the message in.
    forger.witnesses.pop("north")
    forger.forge(forger.round_leaf(2))
    expect(forger, "'masked' of 'north' does not hold: A signature")


def test_a_survivor_set_that_was_not_confirmed_is_found(forger):
    leaf = forger.round_leaf(2, dropped=("west",))
    whole = forger.round_leaf(2)

    def split(fields):
        # west's input is put back among those that three sites confirmed without it.
        fields["survivors"] = whole["survivors"]
        fields["masked"]["west"] = whole["masked"]["west"]

    forger.forge(leaf, split)
    expect(forger, r"'(east|north|south)' signed other survivors in its message 'confirmed'")


def test_too_few_confirmations_are_found(forger):
    def drop(fields):
        del fields["confirmed"]["east"], fields["confirmed"]["west"]

    forger.forge(forger.round_leaf(2), drop)
    expect(forger, "Only 2 sites confirmed who is in the sum; of 4 asked it takes 3")


def test_too_few_survivors_are_found(forger):
    forger.forge(forger.round_leaf(2, dropped=("east", "west")))
    expect(forger, "Only 2 sites are in the sum")


def test_a_missing_input_is_found(forger):
    forger.forge(forger.round_leaf(2), lambda fields: fields["masked"].pop("east"))
    expect(forger, "masked input of 'east' is missing")


def test_a_survivor_without_keys_is_found(forger):
    def leave_out(fields):
        fields["sharers"].remove("east")

    forger.forge(forger.round_leaf(2), leave_out)
    expect(forger, "'east' is in the sum, but it had shared no keys")


def test_other_sharers_than_signed_are_found(forger):
    leaf = forger.round_leaf(2, dropped=("west",))
    forger.forge(leaf, lambda fields: fields["sharers"].remove("west"))
    expect(forger, "'east' signed other sharers")


def test_another_model_than_the_last_round_gave_is_found(forger):
    forger.forge(forger.round_leaf(2, model=digest("poisoned")))
    expect(forger, "another model than the last round ended with")


def test_another_plan_is_found(forger):
    forger.forge(forger.round_leaf(2, plan=digest("weaker privacy")))
    expect(forger, "another plan than the run started with")


def test_another_roster_is_found(forger):
    forger.forge(forger.round_leaf(2, roster=digest("roster")))
    expect(forger, "another roster than the log has")


def test_a_round_agreed_on_another_log_is_found(forger):
    context = forger.context(2)
    leaf = forger.round_leaf(2)
    other = leaves.round_leaf(
        forger.context(2, log_root=digest("other log")),
        context.cohort,
        context.cohort,
        digest("model 2"),
        {},
        {},
        forger.time(),
    )
    other_context = forger.context(2, log_root=digest("other log"))
    for site in context.cohort:
        other["masked"][site] = leaves._encoded(
            {site: forger.masked(site, other_context, context.cohort)}
        )[site]
        other["confirmed"][site] = leaves._encoded(
            {site: forger.confirmed(site, other_context, context.cohort)}
        )[site]
    assert leaf["context"] != other["context"]
    forger.forge(other)
    expect(forger, "agreed on another log: its context has another root")


def test_a_round_twice_is_found(forger):
    forger.forge(forger.round_leaf(1))
    expect(forger, r"Round 1 \(train\) comes after round 1")


def test_a_model_changed_by_an_evaluation_is_found(forger):
    def change(fields):
        fields["model_out"] = digest("changed")

    forger.forge(forger.round_leaf(1, "evaluate"), change)
    expect(forger, "another one after an evaluation")


def test_an_epsilon_that_falls_is_found(forger):
    forger.epsilons["south"] = -0.25
    forger.forge(forger.round_leaf(2))
    expect(forger, "epsilon that 'south' states falls from 0.25 to 0")


def test_an_epsilon_that_vanishes_is_found(forger):
    real = forger.masked
    forger.masked = lambda site, context, sharers: real(
        site, context, sharers, **({"epsilon": None} if site == "south" else {})
    )
    forger.forge(forger.round_leaf(2))
    expect(forger, "'south' states falls from 0.25 to none")


def test_a_site_without_epsilon_field_is_found(forger):
    def bare(site, context, sharers):
        signer = forger.consortium.signers[site]
        body = {"sharers": list(sharers), "report": {}}
        parts = {"update": Part.of(b"")}
        return seal(signer, "masked", context.sha256(), 2, body, parts).to_bytes()

    forger.masked = bare
    forger.forge(forger.round_leaf(2))
    expect(forger, "states no epsilon and delta")


def test_a_masked_message_without_an_update_is_found(forger, monkeypatch):
    monkeypatch.setattr(
        forger,
        "masked",
        lambda site, context, sharers: seal(
            forger.consortium.signers[site],
            "masked",
            context.sha256(),
            2,
            {"sharers": list(sharers), "report": {"epsilon": 1.0, "delta": 1e-5}},
        ).to_bytes(),
    )
    forger.forge(forger.round_leaf(2))
    expect(forger, "'masked' of 'east' has no update")


def test_a_leaf_younger_than_its_checkpoint_is_found(forger):
    leaf = leaves.abandoned_leaf(forger.context(2), "tomorrow", forger.time() + 1)
    forger.forge(leaf)
    expect(forger, "younger than the checkpoint")


def test_a_resumption_from_an_unknown_model_is_found(forger):
    forger.forge(leaves.resumed_leaf(RUN, 1, digest("another"), forger.time()))
    expect(forger, "a model that the log does not have after round 1")


def test_a_second_start_is_found(forger):
    forger.forge(
        leaves.start_leaf(RUN, forger.plan, digest("model 0"), forger.roster, forger.time())
    )
    expect(forger, "log.jsonl, line 3: The run starts twice")


def test_an_older_roster_is_found(forger):
    forger.forge(leaves.roster_leaf(RUN, forger.roster, forger.time()))
    expect(forger, "not a newer one of the same consortium")


def test_a_roster_that_the_root_did_not_sign_is_found(forger):
    forger.consortium.version = 2
    forger.consortium.root_key = Consortium().root_key
    forger.forge(leaves.roster_leaf(RUN, forger.consortium.signed_roster(), forger.time()))
    expect(forger, "line 3: The roster is not signed by the root")


def test_a_cohort_of_two_is_found(tmp_path):
    forger = Forger(tmp_path / "audit", Consortium(("east", "north")))
    forger.start()
    forger.forge(forger.round_leaf(1))
    expect(forger, "Only 2 sites were asked")


def test_a_site_outside_the_roster_is_found(tmp_path):
    consortium = Consortium()
    stranger = Consortium(("zoo",)).signers["zoo"]
    forger = Forger(tmp_path / "audit", consortium, witnesses=False)
    forger.start()
    consortium.signers["zoo"] = stranger
    forger.epsilons["zoo"] = 0.0
    forger.forge(forger.round_leaf(1))
    expect(forger, "'zoo' is not in the roster")


def test_a_missing_cosignature_of_a_site_that_took_part_is_found(forger):
    forger.witnesses.pop("south")
    forger.round(2)
    expect(forger, "round 2 .*'south' took part, and its cosignature of the head of size 2")


@pytest.mark.parametrize("late", [0, 61])
def test_a_message_signed_after_the_keys_end_is_found(tmp_path, late):
    consortium = Consortium()
    forger = Forger(tmp_path / "audit", consortium, witnesses=False)
    forger.roster = consortium.signed_roster(east=START + 60)
    forger.start()
    consortium.now += late
    forger.log.append(leaves.abandoned_leaf(forger.context(1), "wait", forger.time()))
    forger.round(1)
    # Without the cosignatures it gets no further than that, if the keys were good.
    expect(forger, "No key of 'east' was valid" if late else "cosignature of the head of size 2")


def test_a_rotated_key_and_a_new_roster_hold(tmp_path):
    consortium = Consortium()
    run = AuditedRun(tmp_path / "audit", consortium)
    run.start()
    run.round(1)
    consortium.signers["east"] = Consortium().signers["east"]
    run.witnesses["east"]._signer = consortium.signers["east"]
    consortium.version = 2
    run.log.append(leaves.roster_leaf(RUN, consortium.signed_roster(), run.time()))
    run.round(2)
    report = verify(run)
    assert (report.rosters, report.rounds) == (2, 2)


def test_an_open_round_is_checked_and_counted_apart(tmp_path):
    run = AuditedRun(tmp_path / "audit", mode="sealed")
    run.start()
    run.open_round(1)
    run.open_round(2)
    report = verify(run)
    assert (report.open_rounds, report.updates, report.rounds) == (2, 8, 0)
    path = run.folder / "log.jsonl"
    lines = lines_of(path)
    fields = json.loads(lines[2])
    fields["updates"]["east"] = json.loads(lines[1])["updates"]["east"]
    write_lines(path, [*lines[:2], canonical_json(fields) + b"\n"])
    with pytest.raises(ProtocolError, match=r"'trained' of 'east'.*another context"):
        verify(run)


def test_an_open_round_under_a_plan_with_secure_aggregation_is_found(tmp_path):
    run = AuditedRun(tmp_path / "audit")
    run.start()
    with pytest.raises(ProtocolError, match="plan has secure aggregation, and the round has not"):
        run.open_round(1)


class TestEarlier:
    """Comparison with what was seen before."""

    def test_a_log_continues_what_a_site_and_another_bundle_saw(self, tmp_path):
        run = AuditedRun(tmp_path / "audit")
        run.start()
        run.round(1)
        old = copy_of(run.folder, tmp_path / "old")
        head = run.log.checkpoint
        (tmp_path / "head.json").write_bytes(canonical_json(head.to_json()))
        run.round(2)
        state = tmp_path / "east.witness.json"
        found = verify(run, site="east", earlier=state).earlier
        assert (found.source, found.size) == ("witness state", 2)
        assert verify(run, earlier=old).earlier.heads == 2
        assert verify(run, earlier=tmp_path / "head.json").earlier.source == "checkpoint"
        with pytest.raises(ProtocolError, match="that of 'east', not of 'west'"):
            verify(run, site="west", earlier=state)
        with pytest.raises(ProtocolError, match="'nowhere' is no site"):
            verify(run, site="nowhere")

    def test_a_log_that_was_cut_back_is_found(self, tmp_path):
        run = AuditedRun(tmp_path / "audit")
        run.start()
        old = copy_of(run.folder, tmp_path / "old")
        run.round(1)
        run.round(2)
        assert verify(run, old).leaves == 1
        for earlier in (run.folder, tmp_path / "north.witness.json"):
            with pytest.raises(ProtocolError, match=r"1 leaves, and .* leaves were taken back"):
                verify(run, old, earlier=earlier)

    def test_two_histories_for_two_witnesses_are_found_when_bundles_meet(self, tmp_path):
        run = AuditedRun(tmp_path / "audit")
        run.start()
        run.round(1)
        twin = AuditedRun(copy_of(run.folder, tmp_path / "twin"), run.consortium)
        twin.witnesses = {}
        run.log.cosigned({})
        run.round(2)
        twin.consortium.now += 1
        twin.log.append(leaves.abandoned_leaf(twin.context(2), "another story", twin.time()))
        # Each bundle holds by itself ...
        assert verify(run).leaves == 3
        assert verify(twin).leaves == 3
        # ... but not together, nor with what a site has seen of the other.
        for one, other in ((run, twin), (twin, run)):
            with pytest.raises(ProtocolError, match=r"signed two histories of hub/.*with 3 leaves"):
                verify(one, earlier=other.folder)
        run.cosign(run.context(3), ["east"])
        with pytest.raises(ProtocolError, match="two histories"):
            verify(twin, site="east", earlier=tmp_path / "east.witness.json")

    def test_a_head_that_the_server_did_not_sign_proves_nothing(self, tmp_path):
        run, other = AuditedRun(tmp_path / "audit"), AuditedRun(tmp_path / "other")
        run.start()
        other.start()
        with pytest.raises(ProtocolError, match="proves nothing"):
            verify(run, earlier=other.folder)

    def test_a_refused_head_in_the_state_is_evidence(self, tmp_path):
        run = AuditedRun(tmp_path / "audit")
        run.start()
        run.round(1)
        twin = AuditedRun(copy_of(run.folder, tmp_path / "twin"), run.consortium, witnesses=False)
        run.round(2)
        run.cosign(run.context(3), ["east"])
        twin.consortium.now += 1
        twin.log.append(leaves.abandoned_leaf(twin.context(2), "another story", twin.time()))
        witness = run.witnesses["east"]
        keys = [run.consortium.server.key.public_key()]
        with pytest.raises(ProtocolError, match="two histories"):
            witness.check(twin.log.checkpoint, [], keys)
        # The site's own history is the bundle's; the head that it refused convicts the server.
        with pytest.raises(ProtocolError, match="signed two histories"):
            verify(run, site="east", earlier=tmp_path / "east.witness.json")

    def test_files_of_other_kinds_are_said_so(self, run, tmp_path):
        path = tmp_path / "old.json"
        with pytest.raises(ConfigurationError, match=r"cannot read old.json"):
            verify(run, earlier=path)
        path.write_text("{}")
        with pytest.raises(ProtocolError, match=r"old.json: "):
            verify(run, earlier=path)
