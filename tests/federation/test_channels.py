"""Signed messages in one process: what a sum is, who drops out, what is refused and told."""

import copy
import json
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from forged_certificates import consortium, revoke_and_install
from rich.console import Console
from small_federation import SITES, TRAIN, WILLING, at, plan_of, run

from fedmed.assurance.report.page import write_report
from fedmed.commands.summary_table import render_summary_table
from fedmed.configuration import Plan
from fedmed.errors import FederationError
from fedmed.federation.wire import pack_message, unpack_message
from fedmed.secagg.quantise import Ring
from fedmed.trust.audit.verify import verify_bundle
from fedmed.trust.credentials import load_credentials
from fedmed.trust.policy import SitePolicy

FOUR = SITES[:4]
STEPS = ("prepare", "work", "confirm", "reveal")


@pytest.fixture(autouse=True, scope="module")
def _plans_parsed_once():
    """To check a plan takes longer than to train these: the sites share what they read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "from_json", cache(Plan.from_json))
        yield


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return consortium(tmp_path_factory.mktemp("keys"), SITES)


@pytest.fixture(scope="module")
def keys(authority):
    folder = authority.folder.parent
    return {name: load_credentials(folder / name, None) for name in (*SITES, "server")}


@pytest.fixture(scope="module")
def plain(keys, tmp_path_factory):
    """Two rounds of all sites in clear: what every other way must give."""
    result = run(keys, tmp_path_factory.mktemp("plain"), plan_of("plain", rounds=2))
    assert result.error is None
    return result


def audited(result, authority):
    root = (authority.folder.parent / "server" / "root.crt").read_bytes()
    return verify_bundle(result.folder / "audit", root)


def model_without(keys, folder, *missing):
    """The model of one round in clear, of the sites that are left."""
    left = tuple(site for site in SITES if site not in missing)
    return run(keys, folder, plan_of("plain"), sites=left).weights


def test_one_sum_is_the_mean_of_the_updates_within_the_proven_bound(keys, tmp_path):
    plain = run(keys, tmp_path / "plain", plan_of("plain"))
    for bits in (32, 16):
        summed = run(keys, tmp_path / str(bits), plan_of(bits=bits, update_bound=1.0))
        assert summed.error is None
        bound = 1 << (max(TRAIN.values()) - 1).bit_length()
        allowed = Ring(bits, 1.0, bound, len(SITES)).error_bound(sum(TRAIN.values()), len(SITES))
        off = np.abs(summed.weights - plain.weights).max()
        assert 0 < off <= allowed + 1e-6
    assert off > 1e-5  # control: the coarse grid is seen


def test_the_metrics_of_a_round_are_those_of_the_model_after_it(keys, plain, tmp_path):
    for mode, tolerance in (("secagg", 1e-4), ("sealed", 1e-12)):
        result = run(keys, tmp_path / mode, plan_of(mode, rounds=2))
        assert result.error is None
        for mine, clear in zip(result.rounds, plain.rounds, strict=True):
            assert mine["metrics"] == pytest.approx(clear["metrics"], abs=tolerance)
            assert mine["loss"] == pytest.approx(clear["loss"], abs=tolerance)
            for site in SITES:
                expected = clear["sites"][site]["metrics"]
                assert mine["sites"][site]["metrics"] == pytest.approx(expected, abs=tolerance)
        assert result.summary["metrics"] == pytest.approx(plain.summary["metrics"], abs=tolerance)
    first, second = plain.rounds
    assert first["metrics"] != pytest.approx(second["metrics"], abs=1e-4)  # control


def test_sealed_updates_give_the_very_model_of_plain_ones(keys, plain, authority, tmp_path):
    sealed = run(keys, tmp_path, plan_of("sealed", rounds=2))
    np.testing.assert_array_equal(sealed.weights, plain.weights)
    assert sealed.rounds[0]["sites"]["elm"]["examples"] == TRAIN["elm"]
    assert not sealed.summary["transport"]["secure_aggregation"]
    audited(sealed, authority)


def test_of_a_sum_the_server_learns_no_sites_numbers(keys, tmp_path):
    result = run(keys, tmp_path)
    assert (
        result.summary["transport"] | {"mode": "secagg", "secure_aggregation": True}
        == (result.summary["transport"])
    )
    for entry in result.rounds[0]["sites"].values():
        assert (entry["examples"], entry["loss"]) == (None, None)


@pytest.mark.parametrize("happening", ["crash", "refusal"])
@pytest.mark.parametrize("step", STEPS)
def test_a_site_that_drops_out_does_not_stop_the_others(keys, authority, tmp_path, step, happening):
    result = run(keys, tmp_path / "run", scripts={"elm": at(step, happening)})
    assert result.error is None
    status = {"crash": "failed", "refusal": "refused"}[happening]
    # Up to its masked update it is left out; after that it is in the sum already.
    out = ("elm",) if step in ("prepare", "work") else ()
    assert result.statuses() == {**dict.fromkeys(SITES, "ok"), "elm": status if out else "ok"}
    assert result.rounds[0]["sites"]["elm"]["reason"]
    expected = model_without(keys, tmp_path / "clear", *out)
    np.testing.assert_allclose(result.weights, expected, atol=1e-6)
    assert result.rounds[0]["participants"] == [site for site in SITES if site not in out]
    assert audited(result, authority).rounds == 1
    assert "DOE" not in (tmp_path / "run" / "rounds.jsonl").read_text()


@pytest.mark.parametrize("step", STEPS)
def test_a_silent_site_is_waited_for_until_the_deadline_of_the_step(keys, tmp_path, step):
    plan = plan_of(step_seconds=0.5)
    plan = replace(plan, federation=replace(plan.federation, deadline_seconds=1.0))
    result = run(keys, tmp_path, plan, scripts={"elm": at(step, "silence")})
    assert result.error is None
    assert "no answer within" in result.rounds[0]["sites"]["elm"]["reason"]
    assert result.statuses()["elm"] == ("late" if step in ("prepare", "work") else "ok")


@pytest.mark.parametrize("step", STEPS)
def test_with_too_few_answers_the_round_is_tried_again(keys, authority, tmp_path, step):
    two = {site: at(step, "crash") for site in ("dogwood", "elm")}
    result = run(keys, tmp_path / "run", scripts=two)
    assert result.error is None
    assert result.statuses() == dict.fromkeys(SITES, "ok")
    (abandoned,) = [leaf for leaf in result.log if leaf["type"] == "abandoned"]
    assert repr("train" if step == "work" else step) in abandoned["reason"]
    first = next(leaf for leaf in result.log if leaf["type"] == "round")
    assert (abandoned["context"]["attempt"], first["context"]["attempt"]) == (1, 2)
    # All sites, but another seed of the batches: nothing is trained twice the same way.
    assert result.rounds[0]["participants"] == list(SITES)
    report = audited(result, authority)
    assert (report.rounds, report.abandoned) == (1, 1)


@pytest.mark.parametrize("step", STEPS)
def test_with_too_few_answers_for_ever_the_run_ends_with_the_reasons(keys, tmp_path, step):
    always = dict.fromkeys(("cedar", "dogwood", "elm"), at(step, "refusal", range(1, 9)))
    result = run(keys, tmp_path, scripts=always)
    assert isinstance(result.error, FederationError)
    text = str(result.error)
    assert "Round 1 came to nothing" in text
    assert "elm: refused: BudgetError: the limit is reached" in text
    assert "resume=DIR" in text


def test_a_site_that_has_restarted_joins_again(keys, authority, tmp_path):
    result = run(
        keys,
        tmp_path / "run",
        plan_of(rounds=2, sites=4),
        sites=FOUR,
        scripts={"birch": at("work", "restart")},
    )
    assert result.error is None
    assert result.sites["birch"].asked["join"] == 2
    assert [line["participants"] for line in result.rounds] == [list(FOUR)] * 2
    assert result.log[1]["type"] == "abandoned"
    assert "birch" in result.summary["sites"]
    audited(result, authority)


def test_a_site_that_has_restarted_is_in_the_next_round_again(keys, tmp_path):
    result = run(keys, tmp_path, plan_of(rounds=2), scripts={"birch": at("prepare", "restart")})
    assert result.error is None
    assert [line["sites"]["birch"]["status"] for line in result.rounds] == ["refused", "ok"]
    assert "NotJoined" in result.rounds[0]["sites"]["birch"]["reason"]


def test_a_site_that_restarts_in_the_last_evaluation_stays_in_the_summary(keys, tmp_path):
    result = run(keys, tmp_path, scripts={"elm": at("prepare", "restart", (2,))})
    assert result.error is None
    assert list(result.summary["sites"]) == list(SITES)
    assert result.summary["sites"]["elm"]["metrics"] == {}
    assert "auroc" in result.summary["sites"]["alder"]["metrics"]


def test_a_site_that_refuses_is_left_out_of_the_next_attempt(keys, tmp_path):
    scripts = {"dogwood": at("prepare", "refusal"), "elm": at("prepare", "crash")}
    result = run(keys, tmp_path, plan_of(rounds=2), scripts=scripts)
    assert result.error is None
    assert result.rounds[0]["participants"] == ["alder", "birch", "cedar", "elm"]
    assert result.rounds[1]["participants"] == list(SITES)


def test_after_the_survivors_are_confirmed_only_they_are_asked_again(keys, authority, tmp_path):
    # elm is out before the survivors are named; then two of them do not confirm in time.
    scripts = {
        "elm": at("work", "crash"),
        "cedar": at("confirm", "crash"),
        "dogwood": at("confirm", "crash"),
    }
    result = run(keys, tmp_path, scripts=scripts)
    assert result.error is None
    assert result.rounds[0]["participants"] == list(FOUR)
    assert result.sites["elm"].asked["prepare"] == 2  # attempt 1, and the evaluation at the end
    assert audited(result, authority).abandoned == 1


def other_hours():
    """An hour that is not now, nor soon."""
    begin = datetime.now().astimezone() + timedelta(hours=6)
    return f"{begin:%H:%M}-{begin + timedelta(hours=1):%H:%M}"


CLOSED = {
    "hours": replace(WILLING, hours=[other_hours()]),
    "models": replace(WILLING, models=["unet"]),
    "transports": replace(WILLING, transports=["sealed"]),
    "smallest_cohort": replace(WILLING, smallest_cohort=4),
    "require_privacy": replace(WILLING, require_privacy=True),
    "servers": replace(WILLING, servers=["other"]),
}


@pytest.mark.parametrize(
    ("mode", "policy", "key"),
    [
        *(("secagg", policy, key) for key, policy in CLOSED.items()),
        ("sealed", SitePolicy(), "transports"),
        ("plain", SitePolicy(), "transports"),
        ("sealed", CLOSED["hours"], "hours"),
        ("plain", CLOSED["hours"], "hours"),
    ],
)
def test_what_a_policy_forbids_is_refused_with_its_key(keys, tmp_path, mode, policy, key):
    result = run(keys, tmp_path, plan_of(mode), policies={"elm": policy})
    assert result.error is None
    assert f"policy ({key})" in result.summary["refused"]["elm"]
    assert result.rounds[0]["participants"] == list(FOUR)


def test_a_run_that_all_policies_forbid_ends_with_their_reasons(keys, tmp_path):
    policies = dict.fromkeys(SITES, SitePolicy(smallest_cohort=6))
    result = run(keys, tmp_path, policies=policies)
    assert str(result.error).count("policy (smallest_cohort)") == len(SITES)


def test_counts_that_a_site_keeps_are_nowhere(keys, authority, tmp_path):
    closed = replace(WILLING, per_site_counts=False)
    result = run(keys, tmp_path, plan_of(rounds=2), policies=dict.fromkeys(SITES, closed))
    assert result.error is None
    summary = result.summary
    for site in summary["sites"].values():
        assert (site["train"], site["val"], site["test"], site["excluded"]) == (None,) * 3 + ({},)
    assert "seconds" not in (tmp_path / "states" / "elm" / "egress.jsonl").read_text()
    np.testing.assert_allclose(  # the mean is as exact as it was
        result.weights, run(keys, tmp_path / "clear", plan_of("plain", rounds=2)).weights, atol=1e-4
    )
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(render_summary_table(summary))
    assert "kept" in captured.get()
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "kept by the site" in page
    assert "the server saw sums only" in page
    audited(result, authority)


@pytest.mark.parametrize(("bits", "coarse"), [(32, False), (16, True)])
def test_a_grid_that_is_too_coarse_for_the_updates_is_told(keys, tmp_path, caplog, bits, coarse):
    # Where sites keep their numbers of images, the bound on weights is far above them.
    closed = dict.fromkeys(SITES, replace(WILLING, per_site_counts=False))
    result = run(keys, tmp_path, plan_of(bits=bits, update_bound=1.0), policies=closed)
    assert result.error is None
    assert ("transport.bits=32" in caplog.text) is coarse


def test_counts_of_one_site_alone_can_be_kept(keys, tmp_path):
    closed = replace(WILLING, per_site_counts=False)
    result = run(keys, tmp_path, policies={"elm": closed})
    assert result.summary["sites"]["elm"]["train"] is None
    assert result.summary["sites"]["alder"]["train"] == TRAIN["alder"]


@pytest.mark.parametrize(
    ("mode", "policy"),
    [
        ("secagg", replace(WILLING, per_site_metrics=False)),
        ("secagg", replace(WILLING, metrics_floor=25)),
        ("sealed", replace(WILLING, metrics_floor=25)),
    ],
    ids=["per_site_metrics", "metrics_floor", "metrics_floor sealed"],
)
def test_metrics_that_a_site_keeps_are_nowhere(keys, tmp_path, mode, policy):
    result = run(keys, tmp_path, plan_of(mode), policies={"elm": policy})
    assert result.error is None
    for sites in (result.summary["sites"], result.rounds[0]["sites"]):
        assert sites["elm"]["metrics"] == {}
        assert "auroc" in sites["alder"]["metrics"]  # control
    assert "auroc" in result.summary["metrics"]


@pytest.mark.parametrize(("every", "evaluated"), [(0, []), (2, [2, 3]), (1, [1, 2, 3])])
@pytest.mark.parametrize("mode", ["secagg", "sealed", "plain"])
def test_models_are_evaluated_as_often_as_the_plan_says(keys, tmp_path, mode, every, evaluated):
    plan = plan_of(mode, rounds=3, evaluate_every=every)
    result = run(keys, tmp_path, plan, sites=FOUR)
    assert result.error is None
    assert [line["round"] for line in result.rounds if line["metrics"]] == evaluated
    assert "auroc" in result.summary["metrics"]  # the test set, whatever happens on the way


@pytest.mark.parametrize("mode", ["secagg", "sealed"])
def test_a_run_goes_on_after_a_stop(keys, authority, tmp_path, mode):
    plan = plan_of(mode, rounds=3)
    unbroken = run(keys, tmp_path / "whole", plan)

    def stopped(asked, time):
        return "refusal" if asked == "work" and time > 1 else None

    broken = run(keys, tmp_path / "cut", plan, scripts=dict.fromkeys(SITES, stopped))
    assert isinstance(broken.error, FederationError)
    assert [line["round"] for line in broken.rounds] == [1]
    resumed = run(keys, tmp_path / "cut", plan)
    assert resumed.error is None
    (leaf,) = [leaf for leaf in resumed.log if leaf["type"] == "resumed"]
    assert leaf["round"] == 1
    assert audited(resumed, authority).abandoned >= 1
    np.testing.assert_allclose(resumed.weights, unbroken.weights, atol=1e-6)
    for mine, theirs in zip(resumed.rounds, unbroken.rounds, strict=True):
        assert mine["metrics"] == pytest.approx(theirs["metrics"], abs=1e-4)


def test_a_finished_run_can_be_gone_on_with_and_gives_the_same_result(keys, authority, tmp_path):
    first = run(keys, tmp_path, plan_of(rounds=2))
    metrics, weights = first.summary["metrics"], first.weights
    again = run(keys, tmp_path, plan_of(rounds=2))
    assert again.error is None
    assert again.summary["metrics"] == metrics
    np.testing.assert_array_equal(again.weights, weights)
    audited(again, authority)


def altered(content, *, header=None, arrays=None, part=None):
    """Change one thing of a message, as somebody on the way could."""
    envelope, parts = unpack_message(content)
    beside = {name: content[name] for name in content if name not in ("envelope", "parts")}
    if arrays is not None:
        (name,) = beside
        beside[name] = ArrayRecord(
            {
                key: Array(a.dtype, a.shape, a.stype, a.data[:-1] + bytes([a.data[-1] ^ 1]))
                for key, a in beside[name].items()
            }
        )
    if part is not None:
        parts[part] = parts[part][:-1] + bytes([parts[part][-1] ^ 1])
    if header is not None:
        body = copy.deepcopy(dict(envelope.body))
        header(body)
        envelope = replace(envelope, body=body)
    return pack_message(envelope.to_bytes(), parts, beside)


def other_survivors(body):
    body["survivors"] = body["survivors"][:-1]


def other_test_set(body):
    body["report"]["evaluate"] = ["test"]


def other_plan(body):
    plan = json.loads(body["plan"])
    plan["federation"]["rounds"] = 9
    body["plan"] = json.dumps(plan)


REQUESTS = {
    "plan": ("secagg", "join", {"header": other_plan}),
    "evaluated set": ("secagg", "prepare", {"header": other_test_set}),
    "key of a peer": ("secagg", "prepare", {"part": "joined/alder"}),
    "box of a peer": ("secagg", "work", {"part": "box/alder"}),
    "model": ("secagg", "work", {"arrays": True}),
    "survivors": ("secagg", "confirm", {"header": other_survivors}),
    "confirmation": ("secagg", "reveal", {"part": "confirmed/alder"}),
    "sealed: model": ("sealed", "work", {"arrays": True}),
    "sealed: evaluated set": ("sealed", "work", {"header": other_test_set}),
}


@pytest.mark.parametrize(("mode", "step", "change"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_that_was_changed_on_the_way_is_refused(keys, tmp_path, mode, step, change):
    seen = []

    def changed(content, answer):
        seen.append(step)
        return answer(altered(content, **change))

    result = run(keys, tmp_path, plan_of(mode), scripts={"elm": at(step, changed)})
    assert result.error is None
    assert seen
    if step == "join":
        assert "elm" in result.summary["refused"]
        return
    assert result.rounds[0]["sites"]["elm"]["reason"].startswith("ProtocolError")
    late = step in ("confirm", "reveal")
    assert result.statuses() == {**dict.fromkeys(SITES, "ok"), "elm": "ok" if late else "refused"}


def told_epsilon(body):
    body["report"]["epsilon"] = 0.1


ANSWERS = {
    "key": ("secagg", "join", {"header": lambda body: body.update(report={})}),
    "box": ("secagg", "prepare", {"part": "box/alder"}),
    "update": ("secagg", "work", {"part": "update"}),
    "counts": ("secagg", "work", {"part": "counts"}),
    "epsilon": ("secagg", "work", {"header": told_epsilon}),
    "survivors": ("secagg", "confirm", {"header": other_survivors}),
    "share": ("secagg", "reveal", {"header": lambda body: body["seeds"].clear()}),
    "sealed: update": ("sealed", "work", {"part": "update"}),
    "sealed: epsilon": ("sealed", "work", {"header": told_epsilon}),
}


@pytest.mark.parametrize(("mode", "step", "change"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_was_changed_on_the_way_is_not_used(
    keys, authority, tmp_path, mode, step, change
):
    def changed(content, answer):
        return altered(answer(content), **change)

    result = run(keys, tmp_path / "run", plan_of(mode), scripts={"elm": at(step, changed)})
    assert result.error is None
    if step == "join":
        # Whose it was cannot be told then, where nodes have no certificates.
        assert list(result.summary["refused"].values()) == ["A signature (message) does not hold."]
        return
    out = ("elm",) if step in ("prepare", "work") else ()
    assert result.rounds[0]["sites"]["elm"]["reason"]
    assert result.statuses() == {**dict.fromkeys(SITES, "ok"), "elm": "failed" if out else "ok"}
    expected = model_without(keys, tmp_path / "clear", *out)
    np.testing.assert_allclose(result.weights, expected, atol=1e-6)
    audited(result, authority)


def test_an_answer_of_another_round_is_not_used(keys, tmp_path):
    kept = []

    def replayed(content, answer):
        kept.append(answer(content))
        return kept[0]

    result = run(keys, tmp_path, plan_of(rounds=2), scripts={"elm": at("work", replayed, (1, 2))})
    assert result.error is None
    assert [line["sites"]["elm"]["status"] for line in result.rounds] == ["ok", "failed"]


def test_two_nodes_under_one_name_are_one_site(keys, authority, tmp_path):
    result = run(keys, tmp_path, nodes=("alder", "birch", "birch", "cedar", "dogwood"))
    assert result.error is None
    assert result.rounds[0]["participants"] == list(FOUR)
    assert set(result.statuses().values()) == {"ok"}
    assert "another node" in result.summary["refused"]["birch"]
    audited(result, authority)


@pytest.mark.parametrize("mode", ["secagg", "sealed"])
def test_a_site_that_comes_back_as_another_node_goes_on(keys, authority, tmp_path, mode):
    away = {6}

    def rotated(content, answer):
        away.clear()
        away.add(5)  # with new keys, the site is a node of another number
        return answer(content)

    result = run(
        keys,
        tmp_path,
        plan_of(mode, rounds=2),
        nodes=(*SITES, "elm"),
        away=away,
        scripts={"alder": at("work", rotated, (2,))},
    )
    assert result.error is None
    assert [line["participants"] for line in result.rounds] == [list(SITES)] * 2
    assert result.summary["refused"] == {}
    assert list(result.summary["sites"]) == list(SITES)
    audited(result, authority)


@pytest.mark.parametrize("mode", ["secagg", "sealed"])
def test_a_site_with_another_roster_is_told_what_to_do(tmp_path, mode):
    authority = consortium(tmp_path / "keys", SITES)
    folder = authority.folder.parent
    keys = {name: load_credentials(folder / name, None) for name in (*SITES, "server")}
    revoke_and_install(authority, "dogwood", folder / "elm")
    keys["elm"] = load_credentials(folder / "elm", None)
    result = run(keys, tmp_path / "run", plan_of(mode))
    assert result.error is None
    assert "different rosters" in result.summary["refused"]["elm"]
    assert "fedmed pki install" in result.summary["refused"]["elm"]


def test_a_server_of_another_consortium_is_not_believed(keys, tmp_path):
    other = consortium(tmp_path / "keys", SITES)
    server = load_credentials(other.folder.parent / "server", None)
    result = run({**keys, "server": server}, tmp_path / "run")
    assert isinstance(result.error, FederationError)
    assert "0 sites joined" in str(result.error)


def test_a_sum_of_fewer_sites_than_the_plan_wants_is_not_opened(keys, tmp_path):
    result = run(
        keys,
        tmp_path,
        plan_of(sites=5, attempts=2),
        scripts={"elm": at("work", "crash", (1, 2))},
    )
    assert "federation.minimum_sites is 5" in str(result.error)
    assert result.sites["alder"].asked["confirm"] == 0


def test_a_run_that_stopped_while_survivors_were_confirmed_goes_on_with_them(
    keys, authority, tmp_path
):
    four = dict.fromkeys(FOUR, at("reveal", "crash", range(1, 9)))
    broken = run(keys, tmp_path, scripts={"elm": at("work", "crash"), **four})
    assert isinstance(broken.error, FederationError)
    # They have written down that elm is not in the sum; now elm is there again.
    resumed = run(keys, tmp_path)
    assert resumed.error is None
    assert resumed.rounds[0]["participants"] == list(FOUR)
    audited(resumed, authority)
