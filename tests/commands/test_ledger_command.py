"""``fedmed ledger show``: spent, remaining, rounds left; nothing is changed."""

import io
import json

import pytest
from rich.console import Console

from fedmed.cli import main
from fedmed.commands.ledger import largest_that_fits, ledger_command
from fedmed.configuration.groups import Unit
from fedmed.errors import ConfigurationError, DataError, PrivacyError
from fedmed.training.accounting import GaussianSteps, Spending, epsilon_for, epsilon_spent
from fedmed.training.ledger import Ledger, Reservation
from fedmed.training.present_plan import PresentPlan

STEPS = GaussianSteps(8.0, 1.0, 2)


def spent(rounds, delta=1e-5):
    return epsilon_spent([GaussianSteps(8.0, 1.0, 2 * rounds)], delta)


def show(*arguments):
    output = io.StringIO()
    code = ledger_command(["show", *arguments], Console(file=output, width=100))
    assert code == 0
    return output.getvalue()


def show_json(*arguments):
    return json.loads(show("--json", *arguments))


@pytest.fixture
def state(tmp_path):
    """Three rounds of two runs on radiographs, two of one run by patient on ultrasound."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for run, number in (("first", 1), ("first", 2), ("second", 1)):
        reservation = Reservation(
            run, number, STEPS, site="cs", study="radiographs", images_per_patient=3
        )
        ledger.reserve(reservation, delta=1e-5, max_epsilon=None)
    for number in (1, 2):
        reservation = Reservation(
            "third", number, STEPS, site="cs", study="ultrasound", unit=Unit.patient
        )
        ledger.reserve(reservation, delta=1e-5, max_epsilon=None)
    return tmp_path


def plan(state, rounds=10, run="second", **fields):
    values = {
        "study": "radiographs",
        "unit": Unit.image,
        "delta": 1e-6,
        "steps": STEPS,
        "images_per_patient": 3,
        **fields,
    }
    PresentPlan(run=run, rounds=rounds, **values).write(state)


def account(report, study, unit):
    (found,) = [a for a in report["accounts"] if (a["study"], a["unit"]) == (study, unit)]
    return found


def test_each_study_and_unit_has_an_account(state):
    report = show_json("site=cs", f"site.state={state}", "site.max_epsilon=5")
    assert report["site"] == "cs"
    assert report["present_plan"] is None
    assert len(report["accounts"]) == 4
    images = account(report, "radiographs", "image")
    assert images == {
        "study": "radiographs",
        "unit": "image",
        "rounds": 3,
        "runs": 2,
        "delta": 1e-5,
        "epsilon": pytest.approx(spent(3)),
        "limit": 5.0,
        "remaining": pytest.approx(5 - spent(3)),
    }
    patients = account(report, "ultrasound", "patient")
    assert (patients["rounds"], patients["runs"]) == (2, 1)
    assert patients["epsilon"] == pytest.approx(spent(2))


def test_an_account_counts_the_rounds_of_the_other_unit_converted(state):
    report = show_json("site=cs", f"site.state={state}")
    patients = account(report, "radiographs", "patient")
    history = [Spending(STEPS, Unit.image, 3)] * 3
    assert patients["rounds"] == 0
    assert patients["epsilon"] == pytest.approx(epsilon_for(Unit.patient, history, 1e-5))


def test_nothing_remains_of_a_limit_that_was_lowered(state):
    report = show_json("site=cs", f"site.state={state}", "site.max_epsilon=0.5")
    assert account(report, "radiographs", "image")["remaining"] == 0.0


def test_without_a_limit_nothing_is_said_to_remain(state):
    plan(state)
    report = show_json("site=cs", f"site.state={state}", "site.max_epsilon=null")
    assert account(report, "radiographs", "image")["remaining"] is None
    assert report["present_plan"]["affordable"] is None
    assert report["present_plan"]["left"] == 9
    assert "no limit" in show("site=cs", f"site.state={state}", "site.max_epsilon=null")


@pytest.mark.parametrize(("affordable", "left"), [(0, 0), (4, 4), (9, 9), (30, 9)])
def test_rounds_left_are_those_within_the_limit_that_are_not_reserved(state, affordable, left):
    plan(state, rounds=10)
    limit = spent(3 + affordable, 1e-6) * 1.0001
    report = show_json("site=cs", f"site.state={state}", f"site.max_epsilon={limit}")
    ahead = report["present_plan"]
    assert (ahead["rounds"], ahead["reserved"]) == (10, 1)
    assert (ahead["affordable"], ahead["left"]) == (affordable, left)
    # And so many the ledger does allow.
    ledger = Ledger(state / "ledger.jsonl")
    for number in range(affordable):
        reservation = Reservation("second", 2 + number, STEPS, study="radiographs")
        ledger.reserve(reservation, delta=1e-6, max_epsilon=limit)
    with pytest.raises(PrivacyError):
        ledger.reserve(
            Reservation("second", 99, STEPS, study="radiographs"), delta=1e-6, max_epsilon=limit
        )


def test_a_limit_that_is_passed_already_leaves_nothing(state):
    plan(state)
    report = show_json("site=cs", f"site.state={state}", "site.max_epsilon=0.1")
    assert report["present_plan"]["left"] == 0


def test_the_plans_study_is_stated_at_the_plans_delta_unless_told_otherwise(state):
    plan(state)
    report = show_json("site=cs", f"site.state={state}")
    assert account(report, "radiographs", "image")["delta"] == 1e-6
    assert account(report, "radiographs", "image")["epsilon"] == pytest.approx(spent(3, 1e-6))
    assert account(report, "ultrasound", "patient")["delta"] == 1e-5
    report = show_json("site=cs", "--delta", "1e-7", f"site.state={state}")
    assert {a["delta"] for a in report["accounts"]} == {1e-7}


def test_a_plan_on_a_study_without_rounds_is_shown(state):
    plan(state, study="new patients", run="fourth")
    report = show_json("site=cs", f"site.state={state}")
    assert account(report, "new patients", "image")["epsilon"] == 0.0
    assert report["present_plan"]["left"] == 10


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": {"noise_multiplier": -1.0, "sample_rate": 1.0, "steps": 2}},
        {"delta": 2.0},
        {"delta": "small"},
        {"rounds": "ten"},
        {"images_per_patient": 0},
    ],
)
def test_a_plan_file_that_makes_no_sense_is_no_plan(state, damage):
    plan(state)
    file = state / "present_plan.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **damage}))
    assert show_json("site=cs", f"site.state={state}")["present_plan"] is None


def test_the_table_for_people(state):
    plan(state)
    text = show("site=cs", f"site.state={state}", "site.max_epsilon=5")
    for word in ("radiographs", "ultrasound", "image", "patient", f"{spent(3, 1e-6):.3f}", "1e-06"):
        assert word in text
    assert "1 of 10 rounds reserved" in text
    (state / "present_plan.json").unlink()
    assert "no present plan" in show("site=cs", f"site.state={state}")


def test_no_finite_bound_is_said_in_words(tmp_path):
    many = Reservation("run", 1, GaussianSteps(1.0, 1.0, 50), images_per_patient=900)
    Ledger(tmp_path / "ledger.jsonl").reserve(many, delta=1e-5, max_epsilon=None)
    assert "unbounded" in show("site=cs", f"site.state={tmp_path}")
    report = show_json("site=cs", f"site.state={tmp_path}")
    patients = account(report, "main", "patient")
    assert (patients["epsilon"], patients["remaining"]) == (None, 0.0)


def test_the_default_folder_is_that_of_the_client(state, tmp_path_factory, monkeypatch):
    work = tmp_path_factory.mktemp("work")
    (work / "state").mkdir()
    (work / "state" / "cs").symlink_to(state)
    monkeypatch.chdir(work)
    assert show_json("site=cs")["site"] == "cs"
    # Settings of the client that are not needed here do no harm.
    assert show_json("site=cs", "data.root=/data", "site.device=cpu")["site"] == "cs"


def test_a_torn_line_is_neither_counted_nor_cut(state):
    file = state / "ledger.jsonl"
    with file.open("a") as ledger:
        ledger.write('{"run"')
    before = file.read_bytes()
    report = show_json("site=cs", f"site.state={state}")
    assert account(report, "radiographs", "image")["rounds"] == 3
    assert file.read_bytes() == before


def test_what_is_wrong_is_said_with_the_way_out(state, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match=r"there is no ledger.*site\.state"):
        show("site=cs", f"site.state={empty}")
    assert list(empty.iterdir()) == []
    with pytest.raises(ConfigurationError, match="site=NAME"):
        show()
    with pytest.raises(ConfigurationError, match="Did you mean"):
        show("site=cs", "site.max_epsilonn=3")
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        show("site=cs", "--delta", "3", f"site.state={state}")
    (state / "ledger.jsonl").write_text("nonsense\n")
    with pytest.raises(PrivacyError, match="line 1"):
        show("site=cs", f"site.state={state}")


def test_exit_codes_and_help(state, capsys):
    assert main(["ledger", "show", "site=cs", f"site.state={state}"]) == 0
    assert main(["ledger", "show", "site=cs", f"site.state={state}/none"]) == 4
    assert main(["ledger", "show"]) == 2
    with pytest.raises(SystemExit) as stopped:
        main(["ledger", "show", "site=cs", "--jsn"])
    assert stopped.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["ledger", "show", "--help"])
    assert stopped.value.code == 0
    assert "fedmed ledger show site=cs" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [0, 1, 2, 3, 7, 8, 9, 100])
def test_the_search_finds_the_largest_number(answer):
    asked = []

    def fits(number):
        asked.append(number)
        return number <= answer

    assert largest_that_fits(fits, 100) == answer
    assert 0 not in asked
    assert len(asked) <= 16
    assert largest_that_fits(lambda _number: True, 100) == 100
