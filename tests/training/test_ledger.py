"""What is spent stays spent: over restarts, torn writes, processes, runs and units."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from fedmed.configuration.groups import Unit
from fedmed.errors import BudgetError, PrivacyError
from fedmed.training import ledger as ledger_module
from fedmed.training.accounting import GaussianSteps, Spending, epsilon_for, epsilon_spent
from fedmed.training.ledger import Ledger, Reservation

# Without sampling epsilon has a closed form: the tests are quick.
STEPS = GaussianSteps(8.0, 1.0, 2)
DELTA = 1e-5


def spent(rounds):
    return epsilon_spent([GaussianSteps(8.0, 1.0, 2 * rounds)], DELTA)


def reserve(ledger, number, run="run", limit=None, **fields):
    return ledger.reserve(Reservation(run, number, STEPS, **fields), delta=DELTA, max_epsilon=limit)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "site" / "ledger.jsonl"


def test_a_restart_goes_on_where_it_was(path):
    for number in range(1, 6):
        last = reserve(Ledger(path), number)
    assert last == spent(5)


def test_two_runs_on_the_same_patients_add_up(path):
    ledger = Ledger(path)
    assert reserve(ledger, 1, run="one") == spent(1)
    assert reserve(ledger, 1, run="two") == spent(2)


def test_other_studies_do_not_count(path):
    ledger = Ledger(path)
    for number in range(3):
        reserve(ledger, number, study="radiographs")
    assert reserve(ledger, 1, study="ultrasound") == spent(1)
    assert ledger.epsilon("radiographs", Unit.image, DELTA) == spent(3)
    assert ledger.epsilon("other", Unit.image, DELTA) == 0.0


def test_a_site_that_was_renamed_keeps_its_account(path):
    ledger = Ledger(path)
    reserve(ledger, 1, site="north")
    assert reserve(ledger, 2, site="south") == spent(2)


def test_rounds_of_the_other_unit_count_converted(path):
    ledger = Ledger(path)
    reserve(ledger, 1, unit=Unit.image, images_per_patient=3)
    with_both = reserve(ledger, 2, unit=Unit.patient, images_per_patient=5)
    history = [Spending(STEPS, Unit.image, 3), Spending(STEPS, Unit.patient, 5)]
    assert with_both == epsilon_for(Unit.patient, history, DELTA)
    assert with_both > spent(2)
    assert ledger.epsilon("main", Unit.image, DELTA) == epsilon_for(Unit.image, history, DELTA)


def test_planned_steps_are_counted_and_not_written(path):
    ledger = Ledger(path)
    reserve(ledger, 1)
    assert ledger.epsilon("main", Unit.image, DELTA, [STEPS, STEPS]) == spent(3)
    assert ledger.epsilon("main", Unit.image, DELTA) == spent(1)


def test_refuses_before_writing_and_says_what_to_do(path):
    ledger = Ledger(path)
    reserve(ledger, 1)
    before = path.read_bytes()
    with pytest.raises(BudgetError, match=r"site\.max_epsilon.*fedmed ledger show") as refusal:
        reserve(ledger, 2, limit=spent(1) * 1.01)
    assert refusal.value.exit_code == 5
    assert path.read_bytes() == before
    assert len(ledger.entries) == 1
    assert reserve(ledger, 2, limit=spent(2)) == spent(2)


def test_the_first_round_can_be_refused_as_well(path):
    with pytest.raises(BudgetError):
        reserve(Ledger(path), 1, limit=spent(1) * 0.99)
    assert Ledger(path).entries == ()


def test_what_has_no_bound_passes_every_limit(path):
    ledger = Ledger(path)
    many = Reservation("run", 1, GaussianSteps(1.0, 1.0, 50), images_per_patient=900)
    ledger.reserve(many, delta=DELTA, max_epsilon=None)
    with pytest.raises(BudgetError, match="another unit"):
        reserve(ledger, 2, unit=Unit.patient, limit=1e12)


def test_a_repeated_round_counts_again_in_production_and_once_with_seeded_noise(tmp_path):
    real = Ledger(tmp_path / "real.jsonl")
    assert reserve(real, 1) < reserve(real, 1)
    times = iter(["2030-01-01T00:00:00+00:00", "2030-01-01T00:00:09+00:00"])
    seeded = Ledger(tmp_path / "seeded.jsonl", clock=lambda: next(times))
    assert reserve(seeded, 1, repeatable="run/1") == reserve(seeded, 1, repeatable="run/1")
    assert len(Ledger(tmp_path / "seeded.jsonl").entries) == 1


def test_a_line_holds_all_that_an_auditor_needs(path):
    ledger = Ledger(path, clock=lambda: "2030-01-02T03:04:05+00:00")
    reserve(ledger, 7, site="north", study="xr", unit=Unit.patient, images_per_patient=4)
    assert json.loads(path.read_text()) == {
        "site": "north",
        "study": "xr",
        "unit": "patient",
        "images_per_patient": 4,
        "run": "run",
        "round": 7,
        "steps": {"noise_multiplier": 8.0, "sample_rate": 1.0, "steps": 2},
        "repeatable": "",
        "time": "2030-01-02T03:04:05+00:00",
    }


def test_lines_of_the_first_format_are_images_of_the_study_main(path):
    path.parent.mkdir(parents=True)
    steps = {"noise_multiplier": 8.0, "sample_rate": 1.0, "steps": 2}
    line = {"run": "old", "round": 1, "steps": steps, "repeatable": ""}
    path.write_text(json.dumps(line) + "\n")
    ledger = Ledger(path)
    assert ledger.entries == (Reservation("old", 1, STEPS, "", "", "main", Unit.image, 1),)
    assert reserve(ledger, 1) == spent(2)


def test_a_line_torn_by_a_crash_is_cut_off_and_the_next_one_is_whole(path):
    reserve(Ledger(path), 1)
    with path.open("a") as file:
        file.write('{"run": "run", "rou')
    assert len(Ledger.read_only(path)) == 1
    assert path.read_text().endswith('"rou')  # reading alone changes nothing
    reserve(Ledger(path), 2)
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_full_disk_trains_nothing_and_tears_nothing_for_ever(path, monkeypatch):
    ledger = Ledger(path)
    reserve(ledger, 1)
    real = os.write

    def half(descriptor, data):
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(PrivacyError, match="No space left"):
        reserve(ledger, 2)
    monkeypatch.undo()
    assert reserve(ledger, 2) == spent(2)
    assert [entry.round for entry in Ledger(path).entries] == [1, 2]


def test_a_failed_sync_counts_as_spent_and_trains_nothing(path, monkeypatch):
    ledger = Ledger(path)
    reserve(ledger, 1)

    def fail(_descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PrivacyError, match="nothing is trained"):
        reserve(ledger, 2)
    monkeypatch.undo()
    assert Ledger(path).epsilon("main", Unit.image, DELTA) == spent(2)


WHOLE = {
    "site": "s",
    "study": "main",
    "unit": "image",
    "images_per_patient": 1,
    "run": "r",
    "round": 1,
    "repeatable": "",
    "time": "",
    "steps": {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 5},
}


def damaged():
    steps = WHOLE["steps"]
    yield "nonsense"
    yield ""
    yield "[]"
    yield "[" * 100_000
    yield '{"run": "r"}'
    for name, value in [
        ("noise_multiplier", -1.0),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", float("nan")),
        ("noise_multiplier", float("inf")),
        ("noise_multiplier", "1"),
        ("noise_multiplier", True),
        ("sample_rate", 0.0),
        ("sample_rate", 1.5),
        ("sample_rate", float("nan")),
        ("steps", 0),
        ("steps", 2.5),
    ]:
        yield json.dumps({**WHOLE, "steps": {**steps, name: value}})
    yield json.dumps({**WHOLE, "steps": {**steps, "more": 1}})
    for name, value in [
        ("unit", "hospital"),
        ("images_per_patient", 0),
        ("round", "1"),
        ("study", ""),
        ("study", None),
        ("run", 3),
        ("unknown", 1),
    ]:
        yield json.dumps({**WHOLE, name: value})
    yield json.dumps({name: WHOLE[name] for name in WHOLE if name != "unit"})


@pytest.mark.parametrize("line", list(damaged()), ids=range(25))
def test_a_damaged_line_is_an_error_that_names_it_not_a_fresh_start(path, line):
    path.parent.mkdir(parents=True)
    content = json.dumps(WHOLE) + "\n" + line + "\n" + json.dumps(WHOLE) + "\n"
    path.write_text(content)
    for read in (Ledger, Ledger.read_only):
        with pytest.raises(PrivacyError, match=r"ledger\.jsonl, line 2: .*damaged"):
            read(path)
    assert path.read_text() == content


def test_the_control_of_the_damaged_lines_is_read(path):
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(WHOLE) + "\n")
    assert len(Ledger(path).entries) == 1


@pytest.mark.parametrize("steps", [GaussianSteps(0.0, 0.1, 1), GaussianSteps(float("nan"), 0.1, 1)])
def test_what_could_not_be_read_back_is_not_written(path, steps):
    ledger = Ledger(path)
    with pytest.raises(PrivacyError):
        ledger.reserve(Reservation("run", 1, steps), delta=DELTA, max_epsilon=None)
    assert not path.exists()


def test_only_the_owner_can_read_it(path):
    path.parent.mkdir(parents=True)
    path.touch(mode=0o644)
    path.chmod(0o644)
    reserve(Ledger(path), 1)
    assert path.stat().st_mode & 0o777 == 0o600
    fresh = path.with_name("fresh.jsonl")
    before = os.umask(0)
    try:
        reserve(Ledger(fresh), 1)
    finally:
        os.umask(before)
    assert fresh.stat().st_mode & 0o777 == 0o600


def test_the_name_of_a_new_file_is_synced_before_the_round_begins(path, monkeypatch):
    synced = []
    real = os.fsync

    def record(descriptor):
        status = os.fstat(descriptor)
        synced.append((stat.S_ISDIR(status.st_mode), status.st_ino))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    reserve(Ledger(path), 1)
    assert (True, path.parent.stat().st_ino) in synced
    assert (True, path.parent.parent.stat().st_ino) in synced
    assert synced[-1] == (False, path.stat().st_ino)


def test_a_ledger_sees_what_another_one_has_written(path):
    one, two = Ledger(path), Ledger(path)
    reserve(one, 1)
    assert two.epsilon("main", Unit.image, DELTA) == spent(1)
    assert reserve(two, 2) == spent(2)
    with pytest.raises(BudgetError):
        reserve(one, 3, limit=spent(2))


def _race(path, name, start, results, limit):
    decide = ledger_module.study_epsilon

    def decide_slowly(*arguments):
        epsilon = decide(*arguments)
        for _turn in range(300):  # let the others act between the decision and the writing
            os.sched_yield()
        return epsilon

    ledger_module.study_epsilon = decide_slowly
    ledger = Ledger(Path(path))
    start.wait()
    passed = 0
    for number in range(6):
        try:
            reserve(ledger, number, run=name, limit=limit)
        except BudgetError:
            break
        passed += 1
    results.put(passed)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_race_never_pass_the_limit_together(path, processes):
    rounds = 5
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(processes), context.Queue()
    limit = spent(rounds) * 1.0001
    workers = [
        context.Process(target=_race, args=(str(path), f"run{n}", start, results, limit))
        for n in range(processes)
    ]
    for worker in workers:
        worker.start()
    passed = sum(results.get(timeout=60) for _worker in workers)
    for worker in workers:
        worker.join(timeout=60)
    assert passed == rounds
    assert len(Ledger(path).entries) == rounds
