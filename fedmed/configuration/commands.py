"""The settings of the three processes: simulation, server, client."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from fedmed.configuration.groups import (
    DataConfig,
    DataSource,
    LinkConfig,
    SimulationConfig,
    SiteConfig,
    TrackingConfig,
)
from fedmed.configuration.plan import Plan, PlanSettings
from fedmed.configuration.validation import validate_plan
from fedmed.errors import ConfigurationError


@dataclass(frozen=True)
class _ProposingSettings(PlanSettings):
    """Settings of a process that proposes a plan."""

    def plan(self) -> Plan:
        """Return the part that all sites must agree on, validated."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(Plan)}
        if self.model.init is not None:
            # A path says something of the proposer's machine and nothing of the weights.
            values["model"] = replace(self.model, init=_fingerprint(Path(self.model.init)))
        plan = Plan(**values)
        validate_plan(plan)
        return plan


@dataclass(frozen=True)
class SimulateSettings(_ProposingSettings):
    """Settings of ``fedmed simulate``; ``resume`` is a run folder to go on with."""

    data: DataConfig = field(default_factory=DataConfig)
    site: SiteConfig = field(default_factory=SiteConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    resume: str | None = None

    def validate(self) -> None:
        """Check what concerns more than the plan.

        Raises:
            ConfigurationError: naming the key and the way out.
        """
        plan = self.plan()
        validate_data(self.data)
        if self.data.source != DataSource.manifest and (
            plan.federation.minimum_sites > self.data.sites
        ):
            raise ConfigurationError(
                f"federation.minimum_sites={plan.federation.minimum_sites} is more than "
                f"data.sites={self.data.sites}: no round could ever finish. Lower the one or "
                "raise the other."
            )
        workers = self.simulation.workers
        if workers is not None and not 1 <= workers <= 1024:
            raise ConfigurationError(f"simulation.workers={workers}: choose 1 to 1024.")
        validate_site(self.site)
        _refuse_seeded_noise_in_production(self.simulation)


@dataclass(frozen=True)
class ServerSettings(_ProposingSettings):
    """Settings of ``python -m server``."""

    link: LinkConfig = field(default_factory=LinkConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    resume: str | None = None

    def validate(self) -> None:
        """Check the plan.

        Raises:
            ConfigurationError: naming the key and the way out.
        """
        self.plan()


@dataclass(frozen=True)
class ClientSettings:
    """Settings of ``python -m clients``: nothing of the plan, which the server proposes."""

    data: DataConfig = field(default_factory=DataConfig)
    site: SiteConfig = field(default_factory=SiteConfig)
    link: LinkConfig = field(default_factory=LinkConfig)

    def validate(self) -> None:
        """Check the site's own settings.

        Raises:
            ConfigurationError: naming the key and the way out.
        """
        if not self.site.name:
            raise ConfigurationError("Which site is this? Give site=NAME, as in: site=cs")
        validate_data(self.data)
        validate_site(self.site)


def validate_data(data: DataConfig) -> None:
    """Check where the images are said to be.

    Raises:
        ConfigurationError: naming the key and the way out.
    """
    if data.source == DataSource.manifest and not data.root:
        raise ConfigurationError(
            "data=manifest needs data.root=DIR, the folder that holds one folder a hospital."
        )
    if data.source == DataSource.npz and not data.path:
        raise ConfigurationError("data=npz needs data.path=FILE.npz.")
    if data.sites < 1:
        raise ConfigurationError(f"data.sites={data.sites}: choose 1 or more.")
    if data.alpha <= 0:
        raise ConfigurationError(f"data.alpha={data.alpha}: choose above 0, such as 0.5.")
    if data.patients < 6:
        raise ConfigurationError(f"data.patients={data.patients}: choose 6 or more.")


def validate_site(site: SiteConfig) -> None:
    """Check a site's own settings.

    Raises:
        ConfigurationError: naming the key and the way out.
    """
    if site.threads is not None and site.threads < 1:
        raise ConfigurationError(f"site.threads={site.threads}: choose 1 or more, or null.")
    if site.max_epsilon is not None and site.max_epsilon <= 0:
        raise ConfigurationError("site.max_epsilon: choose above 0, or null for no limit.")
    if not 0 < site.max_delta < 1:
        raise ConfigurationError("site.max_delta: choose a small value above 0, such as 1e-5.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", site.study):
        raise ConfigurationError(
            f"site.study={site.study}: choose a name of letters, digits, dots and dashes."
        )


def _refuse_seeded_noise_in_production(simulation: SimulationConfig) -> None:
    if simulation.seeded_noise and os.environ.get("FEDMED_ALLOW_SEEDED_NOISE") != "1":
        raise ConfigurationError(
            "simulation.seeded_noise=true voids differential privacy and is for tests: set the "
            "environment variable FEDMED_ALLOW_SEEDED_NOISE=1 as well to confirm."
        )


def _fingerprint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(
            f"model.init={path}: there is no such file, or it cannot be read."
        ) from error
