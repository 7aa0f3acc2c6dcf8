"""``fedmed simulate``: a whole federation on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Context, RecordDict
from rich.console import Console

from clients.app import make_client_app
from clients.simulated import OPEN_POLICY, SimulatedSites, trust_folder
from fedmed.commands.baselines import compare_with_baselines
from fedmed.commands.console import ConsoleObserver
from fedmed.commands.logs import log_to
from fedmed.commands.run_report import say_how_to_resume, write_run_report
from fedmed.commands.sample_data import ensure_archives
from fedmed.configuration.commands import SimulateSettings
from fedmed.configuration.groups import Engine, TransportMode
from fedmed.configuration.loading import load_settings, read_settings, write_settings
from fedmed.data.sources import site_sources
from fedmed.errors import ConfigurationError
from fedmed.federation.in_process import RUN_ID, InProcessGrid
from fedmed.federation.run_folder import RunFolder
from fedmed.training.device import available_cores, keep_freed_memory
from fedmed.training.noise import SecureNoise, SeededNoise
from fedmed.training.seeds import derive_seed
from fedmed.trust.credentials import load_credentials
from fedmed.trust.policy_file import read_policy
from fedmed.trust.simulated import simulated_consortium
from server.app import ServerRun, make_server_app

EXAMPLES = """\
  fedmed simulate
      three generated hospitals, differential privacy on (about two minutes)
  fedmed simulate data=manifest data.root=DIR privacy=off federation.rounds=15
      your own archives, one folder a hospital, without privacy
  fedmed simulate resume=outputs/2026-11-23/14-05-09
      go on with a run that was stopped"""


def simulate(arguments: Sequence[str], console: Console) -> int:
    """Run a simulation from Hydra overrides.

    Raises:
        FedmedError: with what is wrong and the way out.
    """
    settings, folder = _settings_and_folder(arguments)
    with (
        log_to(folder.path / "fedmed.log"),
        say_how_to_resume("fedmed simulate", folder.path, console),
    ):
        settings = ensure_archives(settings, folder, console)
        _run(settings, folder, console)
        if settings.tracking.report:
            write_run_report(folder.path)
    console.print(f"Run folder: {folder.path}", soft_wrap=True)
    return 0


def _settings_and_folder(arguments: Sequence[str]) -> tuple[SimulateSettings, RunFolder]:
    settings = load_settings(SimulateSettings, "simulate", arguments)
    keep = settings.tracking.keep_checkpoints
    if settings.resume is None:
        folder = RunFolder.create(Path(settings.tracking.folder), keep)
        write_settings(settings, folder.path / "config.yaml")
        return settings, folder
    others = [a for a in arguments if not a.startswith("resume=")]
    if others:
        raise ConfigurationError(
            f"resume= goes on with the settings of that run; leave out {' '.join(others)}."
        )
    path = Path(settings.resume)
    stored = read_settings(SimulateSettings, path / "config.yaml")
    return stored, RunFolder(path, stored.tracking.keep_checkpoints)


def _run(settings: SimulateSettings, folder: RunFolder, console: Console) -> None:
    keep_freed_memory()
    names = tuple(sorted(site_sources(settings.data)))
    plan = settings.plan()
    if plan.federation.minimum_sites > len(names):
        raise ConfigurationError(
            f"federation.minimum_sites={plan.federation.minimum_sites} is more than the "
            f"{len(names)} sites found in data.root. Lower the one or add hospitals."
        )
    seeded = settings.simulation.seeded_noise
    keys = trust_folder(folder.path)
    simulated_consortium(keys, names)
    with ConsoleObserver(console) as observer:
        run = ServerRun(
            plan,
            folder,
            observer,
            load_credentials(keys / "server", None),
            expected=len(names),
            initial=Path(settings.model.init) if settings.model.init else None,
            noise=SeededNoise(derive_seed(plan.seed, "noise", "server"))
            if seeded
            else SecureNoise(),
        )
        ray = settings.simulation.engine == Engine.ray
        sites = SimulatedSites(
            settings.data,
            settings.site,
            names,
            folder.path,
            read_policy(Path(policy)) if (policy := settings.site.policy) else OPEN_POLICY,
            seeded,
            None if ray else observer.site_progress,
        )
        try:
            if ray:
                _run_on_ray(run, sites, settings)
            else:
                _run_in_process(run, sites, settings)
            if settings.simulation.compare:
                torch.set_num_threads(settings.site.threads or available_cores())
                console.print("Training the baselines: each site alone, then the pooled images")
                run.summary["baselines"] = compare_with_baselines(settings, sites, observer)
                folder.write_json("summary.json", run.summary)
        finally:
            sites.forget()
        observer.run_finished(run.summary)


def _workers(settings: SimulateSettings, sites: int) -> tuple[int, int]:
    """Return how many sites work at once, and torch threads for each of them."""
    cores = available_cores()
    workers = settings.simulation.workers or max(1, min(sites, cores))
    threads = settings.site.threads or max(1, cores // workers)
    return workers, threads


def _run_in_process(run: ServerRun, sites: SimulatedSites, settings: SimulateSettings) -> None:
    workers, threads = _workers(settings, len(sites.names))
    torch.set_num_threads(threads)
    grid = InProcessGrid(make_client_app(sites), sites.node_configs(), workers)
    context = Context(run_id=RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config={})
    try:
        make_server_app(run)(grid, context)
    finally:
        grid.close()


def _run_on_ray(run: ServerRun, sites: SimulatedSites, settings: SimulateSettings) -> None:
    try:
        import ray  # noqa: F401, PLC0415 - an extra
        from flwr.simulation import run_simulation  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "simulation=ray needs Ray: pip install 'fedmed[ray]', or leave simulation=in_process."
        ) from error
    workers, threads = _workers(settings, len(sites.names))
    # A site keeps the keys of a round in memory, and Ray hands its messages to any free process:
    # unless messages are plain, there is one process for all sites.
    signed = settings.transport.mode != TransportMode.plain
    share = available_cores() if signed else max(1, available_cores() // workers)
    located = replace(
        sites,
        folder=sites.folder.resolve(),
        site=replace(sites.site, threads=threads),
        data=replace(
            sites.data,
            root=str(Path(sites.data.root).resolve()) if sites.data.root else None,
            path=str(Path(sites.data.path).resolve()) if sites.data.path else None,
        ),
    )
    run_simulation(
        server_app=make_server_app(run),
        client_app=make_client_app(located),
        num_supernodes=len(sites.names),
        backend_config={
            "client_resources": {"num_cpus": share, "num_gpus": 0.0},
            "init_args": {
                "log_to_driver": False,
                "include_dashboard": False,
                **({"num_cpus": share} if signed else {}),
            },
        },
    )
