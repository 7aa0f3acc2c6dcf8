"""All checks of one site, in the order in which they build on one another."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedmed.assurance.doctor import connection_checks as link
from fedmed.assurance.doctor import credential_checks as trust
from fedmed.assurance.doctor import machine_checks as machine
from fedmed.assurance.doctor import round_time as rounds
from fedmed.assurance.doctor import site_checks as site
from fedmed.assurance.doctor.check_result import (
    CheckResult,
    State,
    failed_by,
    not_measured,
)
from fedmed.assurance.doctor.connection import Greeting, ServerProbe, Upload
from fedmed.configuration.commands import ClientSettings
from fedmed.configuration.groups import DataSource
from fedmed.configuration.plan import Plan
from fedmed.errors import DataError, FedmedError
from fedmed.training.device import choose_device, default_threads
from fedmed.trust.credentials import Credentials, load_credentials
from fedmed.trust.passphrase import find_passphrase
from fedmed.trust.policy import SitePolicy
from fedmed.trust.policy_file import read_policy
from fedmed.trust.roster import Role


class Examination:
    """The checks of one site; nothing is changed, and nothing is sent that a server keeps.

    Args:
        settings: of the client.
        plan: whose payload and training time are predicted.
        plan_given: whether the plan is more than the installed defaults.
    """

    def __init__(self, settings: ClientSettings, plan: Plan, *, plan_given: bool = False) -> None:
        self._settings = settings
        self._plan = plan
        self._plan_given = plan_given
        self._state = Path(settings.site.state or f"state/{settings.site.name}")
        self._threads = settings.site.threads or default_threads()
        self._payload = rounds.payload_of(plan)
        self._policy: SitePolicy | None = None
        self._credentials: Credentials | None = None
        self._upload: Upload | None = None
        self._count: site.ArchiveCount | None = None

    def results(self) -> Iterator[CheckResult]:
        """Yield the result of each check as it comes."""
        yield self._check_policy()
        yield from self._check_credentials()
        yield from self._check_link()
        yield machine.check_disk(self._state, self._payload)
        yield machine.check_device(self._settings.site.device, self._threads)
        yield self._check_manifest()
        yield site.check_ledger(self._state, self._settings.site, self._policy)
        if self._plan_given:
            yield self._check_plan()
        yield from self._predict()

    def _check_policy(self) -> CheckResult:
        path: str | None = getattr(self._settings.site, "policy", None)
        try:
            self._policy = read_policy(None if path is None else Path(path))
        except FedmedError as error:
            return failed_by(site.POLICY, error, "correct the file; docs/policy.yaml explains it")
        return site.check_policy(self._policy, from_file=path is not None)

    def _check_credentials(self) -> Iterator[CheckResult]:
        settings, name = self._settings.link, self._settings.site.name
        passphrase_file = settings.passphrase_file
        try:
            found = load_credentials(
                Path(settings.credentials),
                find_passphrase(Path(passphrase_file) if passphrase_file else None),
            )
        except FedmedError as error:
            yield failed_by(trust.CREDENTIALS, error, "see fedmed pki status")
            return
        result = trust.check_credentials(found, name)
        yield result
        if result.state == State.failed:
            return
        self._credentials = found
        now = datetime.now(UTC)
        yield trust.check_certificate(found.tls_certificate, now)
        yield trust.check_revocation_list(found.crl, now)
        yield trust.check_roster(found.roster, name)

    def _check_link(self) -> Iterator[CheckResult]:
        settings = self._settings.link
        reachable = link.check_reachable(settings.address, settings.proxy)
        yield reachable
        if reachable.state == State.failed or self._credentials is None:
            why = "needs a server" if reachable.state == State.failed else "needs credentials"
            for name in (link.TLS, link.CLOCK, link.BANDWIDTH):
                yield not_measured(name, why)
            return
        found = self._greet(self._credentials)
        yield link.check_tls(found, settings.proxy)
        if isinstance(found, FedmedError):
            yield not_measured(link.CLOCK, "needs the server's answer")
        else:
            yield link.check_clock(found)
        deadline = self._plan.federation.deadline_seconds
        yield link.check_bandwidth(self._upload, self._payload, deadline)

    def _greet(self, credentials: Credentials) -> Greeting | FedmedError:
        settings = self._settings.link
        try:
            with ServerProbe(settings.address, credentials, settings.proxy) as probe:
                greeting = probe.greet()
                self._upload = probe.upload()
        except FedmedError as error:
            return error
        return greeting

    def _check_manifest(self) -> CheckResult:
        data = self._settings.data
        if data.source != DataSource.manifest:
            return not_measured(site.MANIFEST, f"data={data.source} has none")
        try:
            folder = site.archive_folder(Path(data.root or ""), self._settings.site.name)
            self._count = site.count_archive(folder)
        except DataError as error:
            return failed_by(site.MANIFEST, error, "correct data.root, or see fedmed data check")
        return site.check_manifest(self._count)

    def _check_plan(self) -> CheckResult:
        if self._policy is None or self._credentials is None:
            return not_measured(site.PLAN, "needs the policy and the roster")
        roster = self._credentials.roster
        (server, *_) = roster.names(Role.server) or ("",)
        sites = len(roster.names(Role.site))
        now = datetime.now().astimezone()
        return site.check_plan_allowed(self._plan, self._policy, server, sites, now)

    def _predict(self) -> Iterator[CheckResult]:
        try:
            device = choose_device(self._settings.site.device)
            seconds = rounds.seconds_per_image(self._plan, device, self._threads)
        except FedmedError as error:
            yield failed_by(rounds.SPEED, error, "see the message")
            yield rounds.check_round_time(None, self._plan)
            return
        yield rounds.check_speed(seconds, self._plan)
        predicted = None
        if self._count is not None:
            share = self._plan.preprocessing.fractions[0]
            predicted = rounds.predict_round(
                self._plan, round(share * self._count.images), seconds, self._payload, self._upload
            )
        yield rounds.check_round_time(predicted, self._plan)
