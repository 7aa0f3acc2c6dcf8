"""The sites of a simulation, made in whichever process needs them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flwr.app import Context

from clients.signed_site import SignedSite
from clients.site import Progress, Site
from fedmed.configuration.groups import DataConfig, SiteConfig
from fedmed.data.sources import site_sources
from fedmed.trust.credentials import load_credentials
from fedmed.trust.policy import TRANSPORTS, SitePolicy

_made: dict[tuple[str, str], SignedSite] = {}


OPEN_POLICY = SitePolicy(
    smallest_cohort=1,
    per_site_metrics=True,
    metrics_floor=1,
    per_site_counts=True,
    egress_bytes_per_round=2**62,
    transports=list(TRANSPORTS),
    largest_image=4096,
)
"""Of simulated sites without a policy file: one person holds all of them and may see all."""


def trust_folder(run_folder: Path) -> Path:
    """Return where the keys of a simulated consortium are."""
    return run_folder / "trust"


@dataclass(frozen=True)
class SimulatedSites:
    """Finds the site of a Flower context; holds only settings, so that Ray can copy it.

    Attributes:
        data: where the archives are.
        site: settings that all sites share.
        names: of the sites, by partition number.
        folder: of the run; each site's state and keys are below it.
        policy: of every site.
        seeded_noise: tests only.
        progress: told of training's progress; None with Ray, whose sites are other processes.
    """

    data: DataConfig
    site: SiteConfig
    names: tuple[str, ...]
    folder: Path
    policy: SitePolicy
    seeded_noise: bool = False
    progress: Progress | None = None

    def __call__(self, context: Context) -> SignedSite:
        """Return the site of a context, from Flower's ``partition-id``."""
        return self._signed(self.names[int(context.node_config["partition-id"])])

    def site_named(self, name: str) -> Site:
        """Return a site, made at the first call in this process."""
        return self._signed(name).site

    def _signed(self, name: str) -> SignedSite:
        key = (str(self.folder.resolve()), name)
        if key not in _made:
            loaders = site_sources(self.data)
            site = Site(
                config=replace(self.site, name=name),
                load=loaders[name],
                state=self.folder / "sites" / name,
                seeded_noise=self.seeded_noise,
                policy=self.policy,
                progress=self.progress or (lambda _site, _share: None),
            )
            keys = trust_folder(self.folder) / name
            _made[key] = SignedSite(site, partial(load_credentials, keys, None))
        return _made[key]

    def forget(self) -> None:
        """Drop this run's sites, and the images that they hold, from this process."""
        for name in self.names:
            _made.pop((str(self.folder.resolve()), name), None)

    def node_configs(self) -> list[dict[str, str | int | float | bool]]:
        """Return Flower's configuration of each node."""
        count = len(self.names)
        return [{"partition-id": n, "num-partitions": count} for n in range(count)]
