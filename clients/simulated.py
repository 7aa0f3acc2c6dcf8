"""The sites of a simulation, made in whichever process needs them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Context

from clients.site import Progress, Site
from fedmed.configuration.groups import DataConfig, SiteConfig
from fedmed.data.sources import site_sources

_made: dict[tuple[str, str], Site] = {}


@dataclass(frozen=True)
class SimulatedSites:
    """Finds the site of a Flower context; holds only settings, so that Ray can copy it.

    Attributes:
        data: where the archives are.
        site: settings that all sites share.
        names: of the sites, by partition number.
        folder: of the run; each site's state is below it.
        seeded_noise: tests only.
        ideal_aggregation: this process stands in for secure aggregation.
        progress: told of training's progress; None with Ray, whose sites are other processes.
    """

    data: DataConfig
    site: SiteConfig
    names: tuple[str, ...]
    folder: Path
    seeded_noise: bool = False
    ideal_aggregation: bool = False
    progress: Progress | None = None

    def __call__(self, context: Context) -> Site:
        """Return the site of a context, from Flower's ``partition-id``."""
        return self.site_named(self.names[int(context.node_config["partition-id"])])

    def site_named(self, name: str) -> Site:
        """Return a site, made at the first call in this process."""
        key = (str(self.folder.resolve()), name)
        if key not in _made:
            loaders = site_sources(self.data)
            _made[key] = Site(
                config=replace(self.site, name=name),
                load=loaders[name],
                state=self.folder / "sites" / name,
                seeded_noise=self.seeded_noise,
                ideal_aggregation=self.ideal_aggregation,
                progress=self.progress or (lambda _site, _share: None),
            )
        return _made[key]

    def forget(self) -> None:
        """Drop this run's sites, and the images that they hold, from this process."""
        for name in self.names:
            _made.pop((str(self.folder.resolve()), name), None)

    def node_configs(self) -> list[dict[str, str | int | float | bool]]:
        """Return Flower's configuration of each node."""
        count = len(self.names)
        return [{"partition-id": n, "num-partitions": count} for n in range(count)]
