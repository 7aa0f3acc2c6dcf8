"""The site that answers at once, behind signed messages and the masks of secure aggregation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from clients.app import make_client_app
from clients.signed_site import SignedSite
from clients.site import Site
from fedmed.configuration.groups import SiteConfig, TaskConfig
from fedmed.data.cohort import Cohort, Reading
from fedmed.federation.records import Joined, Request, Trained
from fedmed.models.parameters import FloatVector, ParameterLayout
from fedmed.tasks.base import Task
from fedmed.tasks.classification.task import Classification
from fedmed.trust.credentials import load_credentials
from round_engines.echo import SITES, echoed
from round_engines.rounds import echo_layout


class EchoSite(Site):
    """A site without an archive, whose training is :func:`round_engines.echo.echoed`."""

    def join(self, request: Request) -> Joined:
        """Take part in anything."""
        return Joined(self.name, 1, 1, 1, {}, None)

    def layout(self, request: Request) -> ParameterLayout:
        """Return the layout of the benchmark's weights."""
        return echo_layout()

    def cohort(self, request: Request) -> Cohort:
        """Return no image: nothing is evaluated."""
        return Cohort({}, 0, ())

    def task(self, request: Request) -> Task:
        """Return a task, for the layout of its counts."""
        return Classification(TaskConfig())

    def delta(self, request: Request) -> float | None:
        """Return none: there is no differential privacy."""
        return None

    def train(
        self, request: Request, weights: FloatVector, attempt: int = 1
    ) -> tuple[Trained, FloatVector]:
        """Answer at once."""
        return Trained(self.name, 1, 0.0, None, 0.0), echoed(weights, self.name)


def signed_echo_app(keys: Path, state: Path, site: str) -> ClientApp:
    """Return the app of one site.

    Args:
        keys: folder of the consortium.
        state: folder of the sites' journals.
        site: name.
    """
    signed = _signed(keys, state, site)
    return make_client_app(lambda _context: signed)


def signed_echo_apps(keys: Path, state: Path) -> ClientApp:
    """Return the app of all sites of a simulation."""
    made = cache(lambda site: _signed(keys, state, site))

    def find(context: Context) -> SignedSite:
        return made(SITES[int(context.node_config["partition-id"])])

    return make_client_app(find)


def new_context(run_id: int, node_id: int) -> Context:
    """Return the empty context of a site in deployment."""
    return Context(run_id, node_id, {}, RecordDict(), {})


def _signed(keys: Path, state: Path, site: str) -> SignedSite:
    return SignedSite(
        EchoSite(SiteConfig(name=site), _no_archive, state / site),
        lambda: load_credentials(keys / site, None),
    )


def _no_archive(_reading: Reading) -> Cohort:
    raise RuntimeError("the site has no archive")
