"""A federation in one process whose sites hold a few random images, for tests of the channels."""

import json
import threading
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from clients.app import make_client_app
from clients.signed_site import SignedSite
from clients.site import Site
from fedmed.configuration import FederationConfig, ModelConfig, Plan
from fedmed.configuration.groups import (
    PreprocessingConfig,
    SiteConfig,
    TrainingConfig,
    TransportConfig,
    TransportMode,
)
from fedmed.data.cohort import Cohort
from fedmed.data.image_set import ImageSet
from fedmed.errors import BudgetError
from fedmed.federation.in_process import RUN_ID, InProcessGrid
from fedmed.federation.observer import SilentObserver
from fedmed.federation.run_folder import RunFolder
from fedmed.trust.policy import TRANSPORTS, SitePolicy
from server.app import ServerRun, make_server_app

SITES = ("alder", "birch", "cedar", "dogwood", "elm")
TRAIN = dict(zip(SITES, (12, 20, 28, 16, 8), strict=True))
SIDE = 16
WILLING = SitePolicy(transports=list(TRANSPORTS))


def plan_of(mode="secagg", *, sites=3, rounds=1, evaluate_every=1, **transport):
    """A plan that is trained in milliseconds; whoever stays silent holds it up for a second."""
    settings = {"mode": TransportMode(mode), "step_seconds": 1.0, **transport}
    return Plan(
        model=ModelConfig(width=2, stages=1),
        preprocessing=PreprocessingConfig(size=SIDE),
        training=TrainingConfig(optimizer="sgd", augment=False, batch_size=8),
        federation=FederationConfig(
            rounds=rounds,
            local_epochs=1.0,
            minimum_sites=sites,
            evaluate_every=evaluate_every,
            deadline_seconds=2.0,
            join_seconds=0.2,
        ),
        transport=TransportConfig(**settings),
    )


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    pixels = torch.rand(count, 1, SIDE, SIDE, generator=generator)
    return ImageSet(pixels * 0.7 + 0.3 * targets.reshape(-1, 1, 1, 1), targets, torch.arange(count))


def cohort(name):
    number = SITES.index(name)
    sizes = {"train": TRAIN[name], "val": 24, "test": 24}
    splits = {
        split: images(size, 10 * number + place)
        for place, (split, size) in enumerate(sizes.items())
    }
    return Cohort(splits, sum(sizes.values()), ())


@dataclass
class ScriptedSite(SignedSite):
    """A site to which something happens.

    Attributes:
        script: what happens, from (step, how often this step was asked of the site): a function
            is given the request and a way to answer it, a word is an entry of ``HAPPENINGS``.
        over: set when the test is over, for those that stay silent.
    """

    script: object = lambda _step, _time: None
    over: threading.Event = field(default_factory=threading.Event)
    asked: Counter = field(default_factory=Counter)

    def answer(self, step, content):
        self.asked[step] += 1
        happening = self.script(step, self.asked[step])
        if happening is None:
            return super().answer(step, content)
        if callable(happening):
            return happening(
                content, lambda request: super(ScriptedSite, self).answer(step, request)
            )
        return getattr(self, f"_{happening}")(step, content)

    def _crash(self, _step, _content):
        raise RuntimeError("patient DOE^JANE is in this text")

    def _silence(self, _step, _content):
        self.over.wait(30)
        raise RuntimeError("too late")

    def _refusal(self, _step, _content):
        raise BudgetError("the limit is reached")

    def _restart(self, step, content):
        self._run = self._credentials = None
        return super().answer(step, content)


def at(step, happening, times=(1,)):
    """A script: it happens at this step, the first time that it is asked (or at ``times``)."""
    return lambda asked, time: happening if asked == step and time in times else None


@dataclass
class Result:
    """What a run left behind."""

    folder: object
    server: ServerRun
    sites: dict
    error: Exception | None = None

    @property
    def rounds(self):
        lines = (self.folder / "rounds.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def summary(self):
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def weights(self):
        arrays = load_file(self.folder / "model.safetensors")
        return np.concatenate([arrays[name].reshape(-1) for name in sorted(arrays)])

    @property
    def log(self):
        lines = (self.folder / "audit" / "log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def statuses(self, number=1):
        (line,) = [line for line in self.rounds if line["round"] == number]
        return {site: entry["status"] for site, entry in line["sites"].items()}


class Nodes(InProcessGrid):
    """A grid some of whose nodes are not connected."""

    away = frozenset()

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node not in self.away]


def run(keys, folder, plan=None, *, scripts=None, policies=None, sites=SITES, nodes=None, away=()):
    """Run a federation in ``folder``, or go on with the one that is there; errors are returned.

    Args:
        keys: credentials by member.
        folder: of the run.
        plan: what is trained.
        scripts: what happens to a site, by name.
        policies: of single sites, by name.
        sites: those that there are.
        nodes: the site of each node, if it is not one node a site.
        away: numbers of nodes, from 1, that are not connected; a script may change them.
    """
    plan = plan or plan_of()
    over = threading.Event()
    made = []
    for position, name in enumerate(nodes or sites):
        site = Site(
            SiteConfig(name=name, threads=1),
            lambda _reading, name=name: cohort(name),
            folder / "states" / (name if name not in (nodes or ())[:position] else f"{name}-2"),
            policy=(policies or {}).get(name, WILLING),
        )
        script = (scripts or {}).get(name, lambda _step, _time: None)
        made.append(ScriptedSite(site, lambda name=name: keys[name], script=script, over=over))
    app = make_client_app(lambda context: made[int(context.node_config["partition-id"])])
    grid = Nodes(app, [{"partition-id": n} for n in range(len(made))], 2 * len(made))
    grid.away = away
    expected = len(made) - len(away)
    server = ServerRun(plan, RunFolder(folder), SilentObserver(), keys["server"], expected=expected)
    context = Context(run_id=RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config={})
    result = Result(folder, server, {one.site.name: one for one in made})
    try:
        make_server_app(server)(grid, context)
    except Exception as error:  # the test looks at it
        result.error = error
    finally:
        over.set()
        grid.close()
    return result


def with_transport(plan, **transport):
    return replace(plan, transport=replace(plan.transport, **transport))
