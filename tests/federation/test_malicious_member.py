"""A member that signs what it should not say: the others' run, budget and audit must not suffer."""

from dataclasses import replace

import numpy as np
import pytest
from forged_certificates import consortium
from small_federation import SITES, TRAIN, WILLING, at, plan_of, run

from clients.signed_site import NotJoinedError
from fedmed.errors import FederationError
from fedmed.federation.wire import pack_message, unpack_message
from fedmed.trust.audit.verify import verify_bundle
from fedmed.trust.credentials import load_credentials
from fedmed.trust.envelope import Part, seal

LIAR = "elm"
HONEST = [site for site in SITES if site != LIAR]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return consortium(tmp_path_factory.mktemp("consortium"), SITES)


@pytest.fixture(scope="module")
def keys(authority):
    folder = authority.folder.parent
    return {name: load_credentials(folder / name, None) for name in (*SITES, "server")}


def audited(result, authority):
    root = (authority.folder / "root.crt").read_bytes()
    return verify_bundle(result.folder / "audit", root)


@pytest.fixture
def lying(keys):
    """A script: the liar changes its own answer of one step and signs it again."""

    def script(step, report=None, parts=None):
        def happening(content, answer):
            envelope, carried = unpack_message(answer(content))
            body = dict(envelope.body)
            body["report"] = {**body.get("report", {}), **(report or {})}
            if parts:
                parts(carried)
            again = seal(
                keys[LIAR].signer,
                envelope.type,
                envelope.context,
                envelope.sequence,
                body,
                {name: Part.of(data) for name, data in carried.items()},
            )
            return pack_message(again.to_bytes(), carried)

        return {LIAR: at(step, happening)}

    return script


@pytest.mark.parametrize(
    ("step", "report"),
    [
        ("join", {"witnessed_size": 10**6}),
        ("join", {"train": 2**50}),
        ("join", {"train": 2**38}),
        ("prepare", {"cosignature": "00" * 64}),
        ("work", {"epsilon": -1.0}),
        ("work", {"junk": "x" * 900_000}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_what_one_member_says_stops_nobody_and_the_audit_holds(
    keys, authority, tmp_path, lying, step, report
):
    result = run(keys, tmp_path / "lie", plan_of(), scripts=lying(step, report))
    assert result.error is None
    line = result.rounds[0]
    assert set(HONEST) <= set(line["participants"])
    assert line["aggregation"]["error_bound"] < 1e-4 < line["aggregation"]["largest"] * 10
    assert len(result.log[-1]["context"]["cohort"]) >= len(HONEST)
    audited(result, authority)


def test_a_weight_that_takes_the_others_away_does_not_blow_up_the_mean(keys, tmp_path, lying):
    """Counts are summed modulo 2^64, so a site may add a negative number to the sum of weights."""

    def parts(carried):
        counts = np.frombuffer(carried["counts"], np.uint64).copy()
        counts[0] -= np.uint64(sum(TRAIN.values()) * 65536 - 1)
        carried["counts"] = counts.tobytes()

    plan = plan_of()
    plan = replace(plan, transport=replace(plan.transport, attempts=1))
    result = run(keys, tmp_path, plan, scripts=lying("work", parts=parts))
    assert isinstance(result.error, FederationError)
    assert "the weights add up" in str(result.error)


def test_a_member_that_restarts_for_ever_does_not_use_up_the_others_budget(keys, tmp_path):
    def restarts(_content, _answer):
        raise NotJoinedError("This site has not joined a run since it was started.")

    three = SITES[:3]
    plan = plan_of(sites=3)
    script = at("work", restarts, times=range(1000))
    result = run(keys, tmp_path, plan, scripts={three[2]: script}, sites=three)
    assert isinstance(result.error, FederationError)
    assert 1 <= result.sites[three[0]].asked["work"] <= plan.transport.attempts + 1


def test_a_site_that_keeps_its_counts_takes_no_plan_that_asks_for_them(keys, tmp_path):
    closed = replace(WILLING, per_site_counts=False)
    result = run(keys, tmp_path, plan_of("sealed"), policies={LIAR: closed})
    assert "per_site_counts" in result.summary["refused"][LIAR]
    assert LIAR not in result.summary["sites"]
