"""The site's journal: on disk before anyone is told, and a kill or restart loses nothing of it."""

import os
import signal
import stat
import subprocess
import sys

import pytest
from secagg_round import Consortium, Exchange

from fedmed import durable_files
from fedmed.errors import PrivacyError, ProtocolError
from fedmed.secagg.journal import BEGUN, CONFIRMED, REVEALED, Journal
from fedmed.trust.context import EVALUATION, TRAINING, RoundContext

A, B = ("site-00", "site-01", "site-02"), ("site-00", "site-01", "site-02", "site-03")


def context(round=1, attempt=1, run="run", purpose=TRAINING):
    return RoundContext(run, purpose, round, attempt, B, "aa", "bb", "cc", 10, 0, "")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "secagg.jsonl"


def test_one_set_of_survivors_for_a_round_whatever_the_attempt(path):
    journal = Journal(path)
    journal.confirm(context(), A)
    for again in (journal, Journal(path)):
        with pytest.raises(ProtocolError, match="confirmed round 1 with other survivors"):
            again.confirm(context(attempt=2), B)
    journal.confirm(context(attempt=2), A)
    with pytest.raises(ProtocolError, match="of this attempt before"):
        journal.confirm(context(attempt=2), A)


@pytest.mark.parametrize("other", [{"round": 2}, {"run": "run-2"}, {"purpose": EVALUATION}])
def test_other_rounds_runs_and_purposes_have_their_own(path, other):
    journal = Journal(path)
    journal.confirm(context(), A)
    journal.confirm(context(**other), B)


def test_shares_are_revealed_once_and_only_of_what_was_confirmed(path):
    journal = Journal(path)
    with pytest.raises(ProtocolError, match="not confirmed"):
        journal.reveal(context(), A)
    journal.confirm(context(), A)
    for wrong in ((context(), B), (context(attempt=2), A), (context(round=2), A)):
        with pytest.raises(ProtocolError, match="not confirmed"):
            journal.reveal(*wrong)
    journal.reveal(context(), A)
    for again in (journal, Journal(path)):
        with pytest.raises(ProtocolError, match="of this attempt before"):
            again.reveal(context(), A)


def test_an_attempt_begins_once(path):
    Journal(path).begin(context())
    with pytest.raises(ProtocolError, match="number of its own"):
        Journal(path).begin(context())
    Journal(path).begin(context(attempt=2))


def test_two_processes_see_what_the_other_one_wrote(path):
    first, second = Journal(path), Journal(path)
    first.confirm(context(), A)
    with pytest.raises(ProtocolError, match="other survivors"):
        second.confirm(context(attempt=2), B)
    second.reveal(context(), A)
    with pytest.raises(ProtocolError, match="before"):
        first.reveal(context(), A)


def test_file_is_private_and_a_torn_line_is_cut_off(path):
    journal = Journal(path)
    journal.confirm(context(), A)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    whole = path.read_bytes()
    for torn in (b"{", whole[:-1], b"\xff"):
        path.write_bytes(whole + torn)
        assert len(Journal(path).entries) == 1
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b"{}\n",
        b'{"context":"aa","purpose":"train","round":"1","run":"r","survivors":[],"type":"begun"}\n',
        b'{"context":"aa","purpose":"train","round":1,"run":"r","survivors":[],"type":"other"}\n',
        b'{"context": "aa","purpose":"train","round":1,"run":"r","survivors":[],"type":"begun"}\n',
        b"\xff\n",
        b"\n",
    ],
)
def test_a_damaged_journal_is_refused(path, line):
    Journal(path).begin(context())
    content = path.read_bytes()
    path.write_bytes(content + line)
    with pytest.raises(PrivacyError, match=r"secagg\.jsonl, line 2: .* damaged"):
        Journal(path)
    assert path.read_bytes() == content + line


def test_a_journal_that_cannot_be_written_stops_the_step(path, monkeypatch):
    journal = Journal(path)

    def full(_descriptor, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable_files.os, "write", full)
    with pytest.raises(PrivacyError, match="No space left"):
        journal.confirm(context(), A)
    monkeypatch.undo()
    assert Journal(path).entries == ()
    journal.confirm(context(), B)


def synced_lines(monkeypatch, events):
    """Record each entry at the moment when it is safely on disk."""
    real = durable_files.os.fsync

    def fsync(descriptor):
        real(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            events.append(("synced", os.pread(descriptor, 1 << 20, 0).count(b"\n")))

    monkeypatch.setattr(durable_files.os, "fsync", fsync)


@pytest.mark.parametrize(
    ("step", "entry", "share"),
    [("prepare", BEGUN, None), ("confirm", CONFIRMED, None), ("reveal", REVEALED, "seeds")],
)
def test_the_entry_is_synced_before_the_answer_is_even_signed(
    tmp_path, monkeypatch, step, entry, share
):
    from fedmed.secagg import site

    consortium = Consortium(tmp_path, 4)
    steps = ("prepare", "train", "confirm", "reveal")
    exchange = Exchange(consortium)
    for earlier in steps[: steps.index(step)]:
        exchange.step(earlier)
    exchange.ask(step)
    events = []
    synced_lines(monkeypatch, events)
    real = site.seal

    def seal(signer, type, *rest):
        lines = consortium.journal(signer.name).entries
        events.append(("signed", type, lines[-1].type))
        assert share is None or set(rest[2][share]) == set(consortium.names)
        return real(signer, type, *rest)

    monkeypatch.setattr(site, "seal", seal)
    exchange.reply(step, "site-00")
    assert [event[0] for event in events] == ["synced", "signed"]
    assert events[1][2] == entry


@pytest.mark.parametrize("step", ["prepare", "confirm", "reveal"])
def test_there_is_no_answer_when_the_disk_is_full(tmp_path, monkeypatch, step):
    consortium = Consortium(tmp_path, 4)
    steps = ("prepare", "train", "confirm", "reveal")
    exchange = Exchange(consortium)
    for earlier in steps[: steps.index(step)]:
        exchange.step(earlier)
    exchange.ask(step)

    def full(_descriptor, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable_files.os, "write", full)
    with pytest.raises(PrivacyError):
        exchange.reply(step, "site-00")
    monkeypatch.undo()
    assert "site-00" not in exchange.replies[step]
    with pytest.raises(ProtocolError, match="is closed"):
        exchange.reply(step, "site-00")


# A process writes one entry and is killed by itself inside the system calls, or at the moment
# before the answer would go out.
PROCESS = """
import os, signal, stat, sys
from pathlib import Path
from fedmed.secagg.journal import Journal
from fedmed.trust.context import RoundContext

path, stage, method = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
names = ("site-00", "site-01", "site-02")
context = RoundContext(
    "run", "train", 1, 1, (*names, "site-03"), "aa", "bb", "cc", 10, 0, ""
)
journal = Journal(path)
real_write, real_fsync = os.write, os.fsync


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def write(descriptor, data):
    if stage == "in the middle of the writing":
        real_write(descriptor, data[: len(data) // 2])
        die()
    return real_write(descriptor, data)


def fsync(descriptor):
    entry = stat.S_ISREG(os.fstat(descriptor).st_mode)
    if entry and stage == "written, not synced":
        die()
    real_fsync(descriptor)
    if entry and stage == "synced, not returned":
        die()


os.write, os.fsync = write, fsync
getattr(journal, method)(context, names)
if stage == "returned, not answered":
    die()
path.with_name("answered").touch()
die()
"""

STAGES = {
    "in the middle of the writing": False,
    "written, not synced": True,
    "synced, not returned": True,
    "returned, not answered": True,
    "answered": True,
}


@pytest.mark.parametrize("method", ["confirm", "reveal"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_any_moment_leaves_no_answer_without_an_entry(path, stage, method):
    journal = Journal(path)
    if method == "reveal":
        journal.confirm(context(), A)
    process = subprocess.run(
        [sys.executable, "-c", PROCESS, str(path), stage, method],
        check=False,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    answered = path.with_name("answered").exists()
    assert answered == (stage == "answered")
    after = Journal(path)
    written = {"confirm": CONFIRMED, "reveal": REVEALED}[method]
    kept = written in {entry.type for entry in after.entries}
    assert kept == STAGES[stage]
    if answered:
        assert kept
    if kept and method == "confirm":
        with pytest.raises(ProtocolError, match="other survivors"):
            after.confirm(context(attempt=2), B)
    elif kept:
        with pytest.raises(ProtocolError, match="of this attempt before"):
            after.reveal(context(), A)
    else:
        # Nothing was answered, so the site is free.
        getattr(after, method)(context(), A)
    assert Journal(path).entries == after.entries
