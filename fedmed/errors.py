"""Errors that a user can act on; each says what is wrong and the way out.

An error that is not a :class:`FedmedError` is a defect of fedmed and keeps its traceback.
Messages never hold a patient identifier: they name files relative to the data root, rows by
number, and settings by key.
"""

from __future__ import annotations


class FedmedError(Exception):
    """Base of all errors that are shown to a user without a traceback.

    Attributes:
        exit_code: what the command returns to the shell.
    """

    exit_code = 1


class ConfigurationError(FedmedError):
    """A setting is unknown, of the wrong type, or impossible together with another one."""

    exit_code = 2


class DataError(FedmedError):
    """A data root, a manifest or a label schema cannot be used."""

    exit_code = 4


class EmptyCohortError(DataError):
    """A site has no image left to train on, and the message says where they went."""


class ImageError(DataError):
    """One image cannot be used; the image is quarantined and the run goes on.

    Attributes:
        reason: short machine-readable reason, counted in ``summary.json``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PrivacyError(FedmedError):
    """A privacy guarantee cannot be kept, or a budget would be passed."""

    exit_code = 5


class BudgetError(PrivacyError):
    """A round would pass the site's privacy budget; the site sits out, nothing was trained."""


class PolicyError(FedmedError):
    """The site's own policy forbids what was asked; nothing was read, trained or sent."""

    exit_code = 5


class ProtocolError(FedmedError):
    """A message from the other side is not what was agreed; nothing of it was used."""

    exit_code = 6


class FederationError(FedmedError):
    """The federation cannot go on: too few sites, a deadline passed, a server out of reach."""

    exit_code = 7


class TrustError(FedmedError):
    """A certificate, a roster or a revocation list does not hold; nobody is believed for it."""

    exit_code = 8
