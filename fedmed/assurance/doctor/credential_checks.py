"""Checks of a site's certificates, and of what the consortium's root has published.

That signatures, modes and keys hold has been checked by ``trust/credentials.py`` when the
credentials were loaded; here is what a site's engineer should know beyond that.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509

from fedmed.assurance.doctor.check_result import CheckResult, failed, passed, warned
from fedmed.trust.credentials import Credentials
from fedmed.trust.issuance import OVERLAP_DAYS
from fedmed.trust.policy import SMALLEST_SECURE_COHORT
from fedmed.trust.roster import Role, Roster

CREDENTIALS = "credentials"
CERTIFICATE = "certificate"
REVOCATION = "revocation list"
ROSTER = "roster"

_REVOCATION_NOTICE = timedelta(days=7)


def check_credentials(credentials: Credentials, site: str) -> CheckResult:
    """Check that the credentials are those of this site."""
    who = f"{credentials.role.value} {credentials.name!r}"
    if credentials.role is not Role.site or credentials.name != site:
        return failed(
            CREDENTIALS,
            f"they are of {who}, and this is site {site!r}",
            "give link.credentials=DIR, the folder of this site (fedmed pki enroll)",
        )
    guarded = "with" if credentials.passphrase is not None else "without"
    return passed(
        CREDENTIALS,
        f"{who} of {credentials.roster.consortium!r}; keys private, {guarded} passphrase",
    )


def check_certificate(certificate: x509.Certificate, now: datetime) -> CheckResult:
    """Check how long a certificate is still valid; a new one takes days of post and phone."""
    end = certificate.not_valid_after_utc
    left = end - now
    detail = f"valid until {end:%Y-%m-%d}, {left.days} days"
    remedy = "run fedmed pki rotate and have the request signed by the consortium"
    if left <= timedelta(0):
        return failed(CERTIFICATE, f"it ran out on {end:%Y-%m-%d}", remedy)
    if left < timedelta(days=OVERLAP_DAYS):
        return warned(CERTIFICATE, detail, remedy)
    return passed(CERTIFICATE, detail)


def check_revocation_list(crl: x509.CertificateRevocationList, now: datetime) -> CheckResult:
    """Check how long the list of revoked certificates is in force; past that nobody is believed."""
    end = crl.next_update_utc
    remedy = "ask the consortium for its newest bundle and run fedmed pki install"
    if end is None or end <= now:
        return failed(REVOCATION, "it is out of date: nobody is believed", remedy)
    detail = f"in force until {end:%Y-%m-%d %H:%M} UTC, {len(crl)} certificates revoked"
    if end - now < _REVOCATION_NOTICE:
        return warned(REVOCATION, detail, remedy)
    return passed(REVOCATION, detail)


def check_roster(roster: Roster, site: str) -> CheckResult:
    """Check that the roster has this site, a server, and sites enough to hide it in a sum."""
    sites, servers = roster.names(Role.site), roster.names(Role.server)
    detail = f"version {roster.version}: {len(sites)} sites; servers: {', '.join(servers)}"
    remedy = "ask the consortium for its newest bundle and run fedmed pki install"
    if site not in sites or not servers:
        return failed(ROSTER, f"{detail}; this site or a server is not in it", remedy)
    if len(sites) < SMALLEST_SECURE_COHORT:
        return warned(
            ROSTER,
            detail,
            f"secure aggregation needs {SMALLEST_SECURE_COHORT} sites; wait for the others",
        )
    return passed(ROSTER, detail)
