"""What a site's policy file says is what its checks hold a server to."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmed.configuration.groups import ModelConfig, PreprocessingConfig, PrivacyConfig, TaskConfig
from fedmed.configuration.plan import Plan
from fedmed.errors import ConfigurationError, PolicyError
from fedmed.trust.policy import (
    SitePolicy,
    allowed_metrics,
    architecture_sha256,
    check_epsilon,
    check_plan,
)
from fedmed.trust.policy_file import read_policy

PRIVATE = PrivacyConfig(enabled=True, target_epsilon=8.0)
NOON = datetime(2026, 11, 24, 12, 0)
EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "policy.yaml"
PLAN = Plan()


def check(policy: SitePolicy, plan: Plan = PLAN, **asked: object) -> None:
    wanted = {"transport": "secagg", "cohort": 5, "server": "hub", "now": NOON, **asked}
    check_plan(plan, policy, **wanted)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return path


def test_without_a_file_the_safe_values_hold():
    policy = read_policy(None)
    assert policy == SitePolicy()
    assert policy.transports == ["secagg"]
    assert policy.smallest_cohort == 3
    assert (policy.per_site_metrics, policy.metrics_floor) == (True, 20)
    assert policy.per_site_counts
    policy.validate()


def test_an_empty_file_and_one_of_comments_are_the_defaults(tmp_path):
    assert read_policy(written(tmp_path, "")) == SitePolicy()
    assert read_policy(written(tmp_path, "# nothing yet\n")) == SitePolicy()


def test_a_file_is_read_with_its_types(tmp_path):
    policy = read_policy(
        written(
            tmp_path,
            "tasks: [classification]\n"
            "models: [residual_cnn]\n"
            "smallest_cohort: 5\n"
            "max_epsilon: 8\n"
            "per_site_metrics: false\n"
            "hours: [18:00-06:00, 12:00-13:00]\n"
            "servers: [hub]\n",
        )
    )
    assert policy == SitePolicy(
        tasks=["classification"],
        models=["residual_cnn"],
        smallest_cohort=5,
        max_epsilon=8.0,
        per_site_metrics=False,
        hours=["18:00-06:00", "12:00-13:00"],
        servers=["hub"],
    )


def test_the_annotated_example_names_every_key_with_its_default():
    assert read_policy(EXAMPLE) == SitePolicy()
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in lines if line and line[0] not in "# "] == [
        entry.name for entry in fields(SitePolicy)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smallest_cohorts: 5", "Did you mean smallest_cohort?"),
        ("xyzzy: 5", "The keys are tasks,"),
        ("smallest_cohort: many", "smallest_cohort"),
        ("smallest_cohort: 2.5", "smallest_cohort"),
        ("per_site_metrics: perhaps", "per_site_metrics"),
        ("tasks: classification", "tasks"),
        ("models: [residual_cn]", "Did you mean residual_cnn?"),
        ("models: [0123abc]", "SHA-256"),
        ("tasks: []", "tasks"),
        ("models: []", "models"),
        ("servers: []", "servers"),
        ("hours: []", "hours"),
        ("transports: []", "transports"),
        ("transports: null", "transports"),
        ("transports: [post]", "transports"),
        ("servers: ['two words']", "servers"),
        ("smallest_cohort: 2", "reads the other's update"),
        ("transports: [plain]\nsmallest_cohort: 0", "smallest_cohort"),
        ("max_epsilon: 0", "max_epsilon"),
        ("max_epsilon: .nan", "max_epsilon"),
        ("max_epsilon_per_round: .inf", "max_epsilon_per_round"),
        ("metrics_floor: 0", "metrics_floor"),
        ("egress_bytes_per_round: 0", "egress_bytes_per_round"),
        ("largest_image: -1", "largest_image"),
        ("hours: [18:00]", "hours"),
        ("hours: ['18:00-18:00']", "hours"),
        ("hours: ['00:00-24:01']", "hours"),
        ("hours: ['25:00-06:00']", "hours"),
        ("hours: ['18:60-06:00']", "hours"),
        ("hours: ['6-18']", "hours"),
        ("- tasks", "key: value"),
        ("tasks: [", "no YAML (line"),
        ("max_epsilon: 8\nmax_epsilon: 80", "no YAML (line 2)"),
        ("servers: ['${oc.env:HOME}']", "${...}"),
        ("max_epsilon: 8 # " + 70_000 * "x", "longer"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_by_name_of_the_key(tmp_path, text, message):
    with pytest.raises(ConfigurationError) as caught:
        read_policy(written(tmp_path, text))
    assert str(caught.value).startswith("policy.yaml: ")
    assert message in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_plain_transport_alone_may_have_small_cohorts(tmp_path):
    policy = read_policy(written(tmp_path, "transports: [plain]\nsmallest_cohort: 1"))
    check(policy, transport="plain", cohort=1)


def test_a_file_that_everybody_can_change_is_refused(tmp_path):
    path = written(tmp_path, "max_epsilon: 8")
    assert read_policy(path).max_epsilon == 8
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match=r"chmod o-w policy\.yaml"):
        read_policy(path)


def test_a_missing_file_is_no_default(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_policy(tmp_path / "policy.yaml")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"servers: [h\xfcb]")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        read_policy(path)


def small(**changes: object) -> Plan:
    return replace(Plan(), **changes)


@pytest.mark.parametrize(
    ("policy", "plan", "asked", "key", "detail"),
    [
        (SitePolicy(servers=["hub"]), Plan(), {"server": "other"}, "servers", "'other'"),
        (SitePolicy(hours=["18:00-06:00"]), Plan(), {}, "hours", "12:00"),
        (
            SitePolicy(tasks=["classification"]),
            small(task=TaskConfig(name="segmentation")),
            {},
            "tasks",
            "segmentation",
        ),
        (
            SitePolicy(models=["residual_cnn"]),
            small(model=ModelConfig(name="scattering")),
            {},
            "models",
            "scattering",
        ),
        (
            SitePolicy(models=[architecture_sha256(Plan())]),
            small(model=ModelConfig(width=17)),
            {},
            "models",
            architecture_sha256(small(model=ModelConfig(width=17))),
        ),
        (
            SitePolicy(),
            small(preprocessing=PreprocessingConfig(size=1025)),
            {},
            "largest_image",
            "1025",
        ),
        (SitePolicy(), Plan(), {"transport": "plain"}, "transports", "plain"),
        (SitePolicy(), Plan(), {"transport": "sealed"}, "transports", "sealed"),
        (SitePolicy(), Plan(), {"cohort": 2}, "smallest_cohort", "2 sites"),
        (SitePolicy(smallest_cohort=6), Plan(), {"cohort": 5}, "smallest_cohort", "5 sites"),
        (SitePolicy(require_privacy=True), Plan(), {}, "require_privacy", "no differential"),
        (SitePolicy(max_epsilon=7.9), small(privacy=PRIVATE), {}, "max_epsilon", "epsilon 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plan_outside_the_policy_is_refused_by_name_of_the_key(policy, plan, asked, key, detail):
    with pytest.raises(PolicyError) as caught:
        check(policy, plan, **asked)
    assert f"({key})" in str(caught.value)
    assert detail in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_plan_inside_the_policy_is_taken():
    # The control of all refusals above: each at its very limit.
    policy = SitePolicy(
        tasks=["classification"],
        models=["scattering", architecture_sha256(Plan())],
        smallest_cohort=5,
        max_epsilon=8.0,
        require_privacy=True,
        hours=["18:00-06:00", "12:00-12:01"],
        servers=["other", "hub"],
        largest_image=64,
    )
    policy.validate()
    check(policy, small(privacy=PRIVATE))


def test_a_bare_policy_object_does_not_undo_the_minimum_of_secure_aggregation():
    # Not read from a file, so never validated.
    with pytest.raises(PolicyError, match="smallest_cohort"):
        check(SitePolicy(smallest_cohort=1), cohort=2)


def test_the_architecture_hash_is_of_task_model_and_preprocessing():
    # Computed here with another JSON writer than the library's.
    import hashlib
    import json

    parts = {name: asdict(Plan())[name] for name in ("model", "preprocessing", "task")}
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    assert architecture_sha256(Plan()) == hashlib.sha256(text.encode()).hexdigest()
    assert architecture_sha256(small(seed=1, privacy=PRIVATE)) == architecture_sha256(Plan())
    for other in (
        small(model=ModelConfig(blocks=2)),
        small(task=TaskConfig(labels=["a", "b"])),
        small(preprocessing=PreprocessingConfig(size=65)),
    ):
        assert architecture_sha256(other) != architecture_sha256(Plan())


def minutes(text: str) -> int:
    hour, minute = text.split(":")
    return 60 * int(hour) + int(minute)


@given(
    start=st.integers(0, 1439),
    length=st.integers(1, 1439),
    moment=st.integers(0, 1439),
)
def test_hours_are_a_span_on_the_clock_face(start, length, moment):
    end = (start + length) % 1440
    text = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    policy = SitePolicy(hours=[text])
    policy.validate()
    now = datetime(2026, 11, 24) + timedelta(minutes=moment)
    inside = (moment - start) % 1440 < length
    if inside:
        check(policy, now=now)
    else:
        with pytest.raises(PolicyError, match="hours"):
            check(policy, now=now)


@pytest.mark.parametrize(
    ("hours", "moment", "works"),
    [
        ("18:00-06:00", "18:00", True),
        ("18:00-06:00", "23:59", True),
        ("18:00-06:00", "00:00", True),
        ("18:00-06:00", "05:59", True),
        ("18:00-06:00", "06:00", False),
        ("18:00-06:00", "17:59", False),
        ("08:00-12:00", "08:00", True),
        ("08:00-12:00", "11:59", True),
        ("08:00-12:00", "12:00", False),
        ("18:00-24:00", "23:59", True),
        ("18:00-24:00", "00:00", False),
        ("00:00-24:00", None, None),
    ],
)
def test_hours_over_midnight(hours, moment, works):
    policy = SitePolicy(hours=[hours])
    if moment is None:  # the whole day has another spelling: null
        with pytest.raises(ConfigurationError, match="null"):
            policy.validate()
        return
    policy.validate()
    now = datetime(2026, 11, 24, *divmod(minutes(moment), 60))
    if works:
        check(policy, now=now)
    else:
        with pytest.raises(PolicyError):
            check(policy, now=now)


def test_a_time_with_a_zone_is_compared_in_local_time(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "XXX-05:00")  # POSIX: five hours ahead of UTC
    time.tzset()
    try:
        policy = SitePolicy(hours=["18:00-19:00"])
        check(policy, now=datetime(2026, 11, 24, 13, 30, tzinfo=timezone.utc))  # noqa: UP017
        with pytest.raises(PolicyError, match="23:30"):
            check(policy, now=datetime(2026, 11, 24, 18, 30, tzinfo=timezone.utc))  # noqa: UP017
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


@pytest.mark.parametrize(
    ("policy", "round_cost", "total", "key"),
    [
        (SitePolicy(max_epsilon_per_round=1.0), 1.001, 1.001, "max_epsilon_per_round"),
        (SitePolicy(max_epsilon=4.0), 1.0, 4.001, "max_epsilon"),
        (SitePolicy(max_epsilon=4.0), 1.0, float("nan"), "max_epsilon"),
        (SitePolicy(), 1.0, float("inf"), "max_epsilon"),
        (SitePolicy(), float("nan"), 1.0, "max_epsilon_per_round"),
        (SitePolicy(require_privacy=True), None, None, "require_privacy"),
        (SitePolicy(require_privacy=True), 1.0, None, "require_privacy"),
    ],
)
def test_a_round_that_costs_too_much_is_refused(policy, round_cost, total, key):
    with pytest.raises(PolicyError) as caught:
        check_epsilon(policy, round_cost, total)
    assert f"({key})" in str(caught.value)


def test_a_round_at_the_limit_is_taken():
    check_epsilon(SitePolicy(max_epsilon_per_round=1.0, max_epsilon=4.0), 1.0, 4.0)
    check_epsilon(SitePolicy(max_epsilon=4.0), None, None)
    check_epsilon(SitePolicy(), 900.0, 900.0)


@pytest.mark.parametrize(
    ("allowed", "images", "may_leave"),
    [(True, 20, True), (True, 19, False), (False, 1000, False)],
)
def test_metrics_leave_from_the_floor_on_where_allowed(allowed, images, may_leave):
    assert allowed_metrics(SitePolicy(per_site_metrics=allowed), images) is may_leave
