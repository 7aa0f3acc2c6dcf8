"""SIGKILL at every stage of a round: the ledger never shows less than may have been released."""

import os
import signal
import subprocess
import sys

import pytest

from fedmed.configuration.groups import Unit
from fedmed.training.accounting import GaussianSteps, epsilon_spent
from fedmed.training.ledger import Ledger, Reservation

DELTA = 1e-5
STEPS = GaussianSteps(8.0, 1.0, 2)

# One round of a site: reserve, train, send. At the stage of its second argument the process tells
# that it is there and waits to be killed; inside the ledger's own system calls it kills itself.
ROUND = """
import os, signal, sys
from pathlib import Path
from fedmed.training.accounting import GaussianSteps
from fedmed.training.ledger import Ledger, Reservation

path, stage, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
real_write, real_fsync = os.write, os.fsync


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at(name):
    if name == stage:
        print(name, flush=True)
        sys.stdin.read()


def write(descriptor, data):
    if stage == "in the middle of the writing":
        real_write(descriptor, data[: len(data) // 2])
        die()
    return real_write(descriptor, data)


def fsync(descriptor):
    if os.fstat(descriptor).st_size and not os.path.isdir(f"/proc/self/fd/{descriptor}"):
        if stage == "written, not synced":
            die()
        real_fsync(descriptor)
        if stage == "synced, not returned":
            die()
    else:
        real_fsync(descriptor)


os.write, os.fsync = write, fsync
ledger = Ledger(path)
at("before the reservation")
ledger.reserve(
    Reservation("run", number, GaussianSteps(8.0, 1.0, 2)), delta=1e-5, max_epsilon=None
)
at("reserved, not begun")
for step in range(2):
    at(f"training, step {step}")
at("trained, not sent")
path.with_name(f"sent-{number}").touch()
at("sent")
"""

# Stage, and rounds in the ledger after one whole round and the killed one.
STAGES = [
    ("before the reservation", 1),
    ("in the middle of the writing", 1),
    ("written, not synced", 2),
    ("synced, not returned", 2),
    ("reserved, not begun", 2),
    ("training, step 0", 2),
    ("training, step 1", 2),
    ("trained, not sent", 2),
    ("sent", 2),
]
KILLS_ITSELF = {"in the middle of the writing", "written, not synced", "synced, not returned"}


def run_round(path, stage, number):
    process = subprocess.Popen(
        [sys.executable, "-c", ROUND, str(path), stage, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if stage not in KILLS_ITSELF:
            assert process.stdout.readline().strip() == stage
            os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=120) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


def spent(rounds):
    return epsilon_spent([GaussianSteps(8.0, 1.0, 2 * rounds)], DELTA)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "rounds"), STAGES)
def test_a_kill_loses_nothing_that_was_released_and_the_next_round_goes_on(tmp_path, stage, rounds):
    path = tmp_path / "ledger.jsonl"
    first = Reservation("run", 1, STEPS)
    Ledger(path).reserve(first, delta=DELTA, max_epsilon=None)
    (tmp_path / "sent-1").touch()

    run_round(path, stage, 2)

    sent = len(list(tmp_path.glob("sent-*")))
    assert sent == (2 if stage == "sent" else 1)
    after = Ledger(path)
    assert after.epsilon("main", Unit.image, DELTA) >= spent(sent)
    assert len(after.entries) == rounds
    assert after.epsilon("main", Unit.image, DELTA) == spent(rounds)
    # The round is done again, and counts again; the file is whole.
    again = Reservation("run", 2, STEPS)
    assert after.reserve(again, delta=DELTA, max_epsilon=None) == spent(rounds + 1)
    assert len(Ledger(path).entries) == rounds + 1


@pytest.mark.slow
def test_a_site_that_is_killed_every_time_runs_out_of_budget(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for _attempt in range(2):
        run_round(path, "training, step 1", 1)
    assert Ledger(path).epsilon("main", Unit.image, DELTA) == spent(2)
