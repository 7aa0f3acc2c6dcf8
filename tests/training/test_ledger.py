"""What is spent stays spent: over restarts, crashes and torn writes."""

import json
import signal
import subprocess
import sys

import pytest

from fedmed.errors import PrivacyError
from fedmed.training.accounting import GaussianSteps, epsilon_spent
from fedmed.training.ledger import Ledger, Reservation

STEPS = GaussianSteps(1.0, 0.1, 20)
DELTA = 1e-5


def reserve(ledger, number, run="run", limit=None, repeatable=""):
    return ledger.reserve(
        Reservation(run, number, STEPS, repeatable), delta=DELTA, max_epsilon=limit
    )


def test_a_restart_goes_on_where_it_was(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for number in range(1, 6):
        last = reserve(Ledger(path), number)
    assert last == epsilon_spent([GaussianSteps(1.0, 0.1, 100)], DELTA)


def test_two_runs_on_the_same_patients_add_up(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    first = reserve(ledger, 1, run="one")
    assert reserve(ledger, 1, run="two") > first


def test_refuses_before_writing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    limit = reserve(ledger, 1) * 1.01
    before = path.read_bytes()
    with pytest.raises(PrivacyError, match=r"site\.max_epsilon"):
        reserve(ledger, 2, limit=limit)
    assert path.read_bytes() == before
    assert len(ledger.entries) == 1


def test_a_repeated_round_counts_again_in_production_and_once_with_seeded_noise(tmp_path):
    real = Ledger(tmp_path / "real.jsonl")
    assert reserve(real, 1) < reserve(real, 1)
    seeded = Ledger(tmp_path / "seeded.jsonl")
    assert reserve(seeded, 1, repeatable="run/1") == reserve(seeded, 1, repeatable="run/1")


def test_sigkill_after_the_reservation_counts_as_spent(tmp_path):
    path = tmp_path / "ledger.jsonl"
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fedmed.training.accounting import GaussianSteps\n"
        "from fedmed.training.ledger import Ledger, Reservation\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "ledger.reserve(Reservation('run', 1, GaussianSteps(1.0, 0.1, 20)),\n"
        "               delta=1e-5, max_epsilon=None)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Ledger(path).epsilon(DELTA) == epsilon_spent([STEPS], DELTA)


def test_a_line_torn_by_a_crash_is_cut_off_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "ledger.jsonl"
    reserve(Ledger(path), 1)
    with path.open("a") as file:
        file.write('{"run": "run", "rou')
    reserve(Ledger(path), 2)
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_damaged_ledger_is_an_error_not_a_fresh_start(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(PrivacyError, match="line 1"):
        Ledger(path)


def test_only_the_owner_can_read_it(tmp_path):
    path = tmp_path / "ledger.jsonl"
    reserve(Ledger(path), 1)
    assert path.stat().st_mode & 0o777 == 0o600
