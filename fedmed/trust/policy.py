"""What a site allows, whatever a server asks.

The policy belongs to the site (see ``trust/policy_file.py``); nothing that comes over the network
changes it. The checks are pure functions: who calls them does nothing before they return.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, time

from fedmed.configuration.plan import Plan
from fedmed.errors import ConfigurationError, PolicyError
from fedmed.models.registry import BUILDERS
from fedmed.tasks.registry import TASKS
from fedmed.trust.canonical import sha256_json
from fedmed.trust.roster import MEMBER_NAME

SECURE_AGGREGATION = "secagg"
TRANSPORTS = (SECURE_AGGREGATION, "sealed", "plain")
SMALLEST_SECURE_COHORT = 3
"""With two sites, each reads the other's update off the sum."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_HOURS = re.compile(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})")


@dataclass(frozen=True)
class SitePolicy:
    """A site's policy; the defaults hold where there is no file. See ``docs/policy.yaml``.

    Attributes:
        tasks: names of the tasks allowed; None is every task of this version.
        models: names of networks, or hex SHA-256 of architectures (:func:`architecture_sha256`);
            None is every network of this version.
        smallest_cohort: fewest sites that a round may ask, this one with them; at least 3 with
            secure aggregation.
        max_epsilon_per_round: most that one round may cost by itself; None is no limit.
        max_epsilon: most that all rounds may cost; None leaves it to ``site.max_epsilon``, which
            holds besides.
        require_privacy: refuse plans without differential privacy.
        per_site_metrics: whether metrics of this site alone may leave it.
        metrics_floor: fewest images for which they may.
        per_site_counts: whether the numbers of images of this site alone may leave it.
        egress_bytes_per_round: most bytes that leave for one round, all attempts together.
        hours: when work is done, as ``18:00-06:00`` in local time; None is always.
        servers: names of the servers in the roster that this site works for; None is all.
        transports: ways for an update to leave: ``secagg``, ``sealed`` (the server reads it) and
            ``plain`` (anybody on the way reads it; tests only).
        largest_image: largest side of the network's input that a plan may ask for, in pixels.
    """

    tasks: list[str] | None = None
    models: list[str] | None = None
    smallest_cohort: int = SMALLEST_SECURE_COHORT
    max_epsilon_per_round: float | None = None
    max_epsilon: float | None = None
    require_privacy: bool = False
    per_site_metrics: bool = True
    metrics_floor: int = 20
    per_site_counts: bool = True
    egress_bytes_per_round: int = 256 * 2**20
    hours: list[str] | None = None
    servers: list[str] | None = None
    transports: list[str] = field(default_factory=lambda: [SECURE_AGGREGATION])
    largest_image: int = 1024

    def validate(self) -> None:
        """Check every value.

        Raises:
            ConfigurationError: naming the key and what would be right.
        """
        _check_names("tasks", self.tasks, TASKS)
        _check_names("models", self.models, BUILDERS, or_sha256=True)
        _check_names("transports", self.transports, TRANSPORTS)
        for name in self.servers or ():
            _demand(MEMBER_NAME.fullmatch(name) is not None, f"servers: {name!r} is no member.")
        for name in ("hours", "servers"):
            _demand(getattr(self, name) != [], f"{name}: [] allows nothing; write null for all.")
        for text in self.hours or ():
            _read_hours(text)
        secure = SECURE_AGGREGATION in self.transports
        least = SMALLEST_SECURE_COHORT if secure else 1
        _demand(
            self.smallest_cohort >= least,
            f"smallest_cohort: {self.smallest_cohort} is below {least}"
            + (": in a sum of two, each site reads the other's update." if secure else "."),
        )
        for name in ("max_epsilon_per_round", "max_epsilon"):
            value = getattr(self, name)
            _demand(
                value is None or (math.isfinite(value) and value > 0),
                f"{name}: choose a number above 0, or null.",
            )
        for name in ("metrics_floor", "egress_bytes_per_round", "largest_image"):
            _demand(getattr(self, name) >= 1, f"{name}: choose 1 or more.")


def architecture_sha256(plan: Plan) -> str:
    """Return the hex SHA-256 of what is trained: the plan's task, model and preprocessing.

    First weights and frozen parameters are part of the model; optimiser, rounds and privacy are
    not.
    """
    values = asdict(plan)
    return sha256_json({name: values[name] for name in ("task", "model", "preprocessing")})


def check_plan(
    plan: Plan,
    policy: SitePolicy,
    *,
    transport: str,
    cohort: int,
    server: str,
    now: datetime,
) -> None:
    """Compare what is asked with what the site allows, before anything is read or trained.

    Args:
        plan: as the server proposes it.
        policy: of the site.
        transport: how the update would leave: ``secagg``, ``sealed`` or ``plain``.
        cohort: number of sites asked, this one with them.
        server: name of the server in the roster.
        now: a time without a zone is local time.

    Raises:
        PolicyError: naming the policy's key and what is asked.
    """
    _check_occasion(policy, server, now)
    _check_what_is_trained(plan, policy)
    if not policy.per_site_counts:
        _require(
            privacy_batch(plan) is None,
            "per_site_counts",
            "the plan sets privacy.batch_size, which a site with fewer patients refuses",
            "privacy.sample_rate tells nothing of a site's numbers",
        )
    if not (policy.per_site_counts and policy.per_site_metrics):
        _require(
            transport == SECURE_AGGREGATION,
            "per_site_counts, per_site_metrics",
            f"with transport.mode={transport} the server sees this site's own counts",
            f"only {SECURE_AGGREGATION} hides them",
        )
    _require(
        transport in policy.transports,
        "transports",
        f"the plan sends updates by transport.mode={transport}",
        f"allowed: {_listed(policy.transports)}",
    )
    least = max(
        policy.smallest_cohort, SMALLEST_SECURE_COHORT if transport == SECURE_AGGREGATION else 1
    )
    _require(
        cohort >= least,
        "smallest_cohort",
        f"the round has {cohort} sites",
        f"at least {least} must take part",
    )
    privacy = plan.privacy
    _require(
        privacy.enabled or not policy.require_privacy,
        "require_privacy",
        "the plan has no differential privacy",
        "a plan with privacy=low, medium or high is allowed",
    )
    if privacy.enabled and privacy.target_epsilon is not None and policy.max_epsilon is not None:
        _require(
            privacy.target_epsilon <= policy.max_epsilon,
            "max_epsilon",
            f"the plan would spend epsilon {privacy.target_epsilon:g}",
            f"allowed: {policy.max_epsilon:g}",
        )


def privacy_batch(plan: Plan) -> int | None:
    """Return the fixed batch size of a private plan, if it has one."""
    return plan.privacy.batch_size if plan.privacy.enabled else None


def check_epsilon(policy: SitePolicy, round_cost: float | None, total: float | None) -> None:
    """Compare what a round would cost with what the site allows, before it is trained.

    Args:
        policy: of the site.
        round_cost: epsilon of this round by itself; None without differential privacy.
        total: epsilon of the study with it; None without differential privacy.

    Raises:
        PolicyError: naming the policy's key, or that there is no finite epsilon to compare.
    """
    for key, limit, cost, what in (
        ("max_epsilon_per_round", policy.max_epsilon_per_round, round_cost, "the round by itself"),
        ("max_epsilon", policy.max_epsilon, total, "all rounds with this one"),
    ):
        if cost is None:
            continue
        # NaN is no number to compare with: it fails here, as infinity does.
        allowed = math.isfinite(cost) if limit is None else cost <= limit
        _require(
            allowed,
            key,
            f"{what} would cost epsilon {cost:.3f}",
            "a finite epsilon is needed" if limit is None else f"allowed: {limit:g}",
        )
    if round_cost is None or total is None:
        _require(
            not policy.require_privacy,
            "require_privacy",
            "the round has no differential privacy",
            "each round must state its epsilon",
        )


def allowed_metrics(policy: SitePolicy, images: int) -> bool:
    """Say whether metrics of this site alone, over so many images, may leave it."""
    return policy.per_site_metrics and images >= policy.metrics_floor


def _check_occasion(policy: SitePolicy, server: str, now: datetime) -> None:
    _require(
        policy.servers is None or server in policy.servers,
        "servers",
        f"server {server!r} asks",
        f"this site works for {_listed(policy.servers or ())}",
    )
    local = now if now.tzinfo is None else now.astimezone()
    _require(
        policy.hours is None or any(_within(local.time(), text) for text in policy.hours),
        "hours",
        f"it is {local:%H:%M} at this site",
        f"it works at {_listed(policy.hours or ())}",
    )


def _check_what_is_trained(plan: Plan, policy: SitePolicy) -> None:
    _require(
        policy.tasks is None or plan.task.name in policy.tasks,
        "tasks",
        f"the plan asks for task={plan.task.name}",
        f"allowed: {_listed(policy.tasks or ())}",
    )
    sha256 = architecture_sha256(plan)
    _require(
        policy.models is None or not {plan.model.name, sha256}.isdisjoint(policy.models),
        "models",
        f"the plan asks for model={plan.model.name}, architecture {sha256}",
        f"allowed: {_listed(policy.models or ())}",
    )
    size = plan.preprocessing.size
    _require(
        size <= policy.largest_image,
        "largest_image",
        f"the plan asks for images of {size} pixels a side",
        f"allowed: up to {policy.largest_image}",
    )


def _require(allowed: bool, key: str, asked: str, rule: str) -> None:
    if not allowed:
        raise PolicyError(f"This site's policy ({key}) forbids it: {asked}; {rule}.")


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values)


def _check_names(
    key: str, given: list[str] | None, known: Iterable[str], *, or_sha256: bool = False
) -> None:
    _demand(given != [], f"{key}: [] allows nothing; no plan could ever be accepted.")
    options = sorted(known)
    for name in given or ():
        if name in options or (or_sha256 and _SHA256.fullmatch(name)):
            continue
        near = difflib.get_close_matches(name, options, n=1)
        hint = f" Did you mean {near[0]}?" if near else f" Choose from {_listed(options)}"
        more = (", or give the SHA-256 of an architecture." if or_sha256 else ".") * (not near)
        raise ConfigurationError(f"{key}: there is no {name!r}.{hint}{more}")


def _read_hours(text: str) -> tuple[time, time]:
    """Return start and end; midnight as an end is 00:00."""
    match = _HOURS.fullmatch(text)
    try:
        if match is None:
            raise ValueError("not of the form")
        hour, minute, last_hour, last_minute = (int(number) for number in match.groups())
        start, end = time(hour, minute), time(last_hour % 24, last_minute)
        if start == end or (last_hour, last_minute) > (24, 0):
            raise ValueError("no time, or too late")
    except ValueError as error:
        raise ConfigurationError(
            f"hours: {text!r} is no span of time; write 18:00-06:00, and null for always."
        ) from error
    return start, end


def _within(moment: time, text: str) -> bool:
    start, end = _read_hours(text)
    if start < end:
        return start <= moment < end
    return moment >= start or moment < end
