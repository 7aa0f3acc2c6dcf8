"""What one check of the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fedmed.errors import FedmedError


class State(StrEnum):
    """Outcome of a check."""

    ok = "ok"
    warning = "warning"
    failed = "failed"
    not_measured = "not measured"


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check, for people.

    Attributes:
        name: what was looked at.
        state: how it is.
        detail: what was found; no patient data, no path outside the settings.
        remedy: the way out; empty where none is needed.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""


def passed(name: str, detail: str) -> CheckResult:
    """Return a check without fault."""
    return CheckResult(name, State.ok, detail)


def warned(name: str, detail: str, remedy: str) -> CheckResult:
    """Return a check that will do, for now."""
    return CheckResult(name, State.warning, detail, remedy)


def failed(name: str, detail: str, remedy: str) -> CheckResult:
    """Return a check that stops the site from taking part."""
    return CheckResult(name, State.failed, detail, remedy)


def not_measured(name: str, why: str) -> CheckResult:
    """Return a check that could not be made."""
    return CheckResult(name, State.not_measured, why)


def failed_by(name: str, error: FedmedError, remedy: str) -> CheckResult:
    """Return a check that ended in an error."""
    return CheckResult(name, State.failed, str(error), remedy)
