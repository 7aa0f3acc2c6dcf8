"""A site whose patients have spent their budget sits out; the others go on."""

import json
from dataclasses import replace

from flwr.app import Context, RecordDict

from clients.app import make_client_app
from clients.signed_site import SignedSite
from clients.site import Site
from fedmed.configuration import FederationConfig, ModelConfig, Plan
from fedmed.configuration.groups import (
    DataConfig,
    PreprocessingConfig,
    PrivacyConfig,
    SiteConfig,
    TrainingConfig,
    TransportConfig,
    TransportMode,
    Unit,
)
from fedmed.data.sources import site_sources
from fedmed.federation.in_process import RUN_ID, InProcessGrid
from fedmed.federation.observer import SilentObserver
from fedmed.federation.run_folder import RunFolder
from fedmed.trust.policy import SitePolicy
from server.app import ServerRun, make_server_app

PLAN = Plan(
    model=ModelConfig(width=2, stages=1),
    transport=TransportConfig(mode=TransportMode.plain),
    preprocessing=PreprocessingConfig(size=16),
    training=TrainingConfig(optimizer="sgd", augment=False),
    federation=FederationConfig(rounds=3, local_epochs=1.0, minimum_sites=2, evaluate_every=0),
    privacy=PrivacyConfig(enabled=True, noise_multiplier=1.0, sample_rate=0.5),
)
UNSIGNED = SitePolicy(transports=["plain"], smallest_cohort=2)


def federation(archives, folder, limits):
    """Three sites, each with its own limit, whose ledgers lie outside the run folder."""
    loaders = site_sources(DataConfig(source="manifest", root=str(archives)))
    return [
        Site(
            SiteConfig(name=name, max_epsilon=limit, threads=1),
            loaders[name],
            folder / "states" / name,
            policy=UNSIGNED,
        )
        for name, limit in zip(sorted(loaders), limits, strict=True)
    ]


def no_keys():
    raise AssertionError("unsigned messages need no keys")


def run_once(sites, folder, plan=PLAN):
    signed = [SignedSite(site, no_keys) for site in sites]
    app = make_client_app(lambda context: signed[int(context.node_config["partition-id"])])
    nodes = [{"partition-id": n, "num-partitions": len(sites)} for n in range(len(sites))]
    grid = InProcessGrid(app, nodes, workers=1)
    run = ServerRun(plan, RunFolder.create(folder, 2), SilentObserver(), expected=len(sites))
    context = Context(run_id=RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config={})
    try:
        make_server_app(run)(grid, context)
    finally:
        grid.close()
    lines = (run.folder.path / "rounds.jsonl").read_text().splitlines()
    return run, [json.loads(line) for line in lines]


def test_one_site_sits_out_from_the_round_that_would_pass_its_limit(archives, tmp_path):
    probe = federation(archives, tmp_path / "probe", [None, None, None])
    run, _ = run_once(probe, tmp_path / "probe")
    whole = run.summary["sites"][probe[0].name]["epsilon"]
    sites = federation(archives, tmp_path, [whole * 0.99, None, None])
    run, rounds = run_once(sites, tmp_path)
    poor, *others = [site.name for site in sites]
    assert [line["sites"][poor]["status"] for line in rounds] == ["ok", "ok", "refused"]
    assert "site.max_epsilon" in rounds[2]["sites"][poor]["reason"]
    assert all(line["participants"] == others for line in rounds[2:])
    assert run.summary["sites"][poor]["epsilon"] <= whole * 0.99
    assert len(sites[0].ledger.entries) == 2


def test_another_run_on_the_same_patients_spends_from_the_same_account(archives, tmp_path):
    sites = federation(archives, tmp_path, [None, None, None])
    first, _ = run_once(sites, tmp_path / "one")
    again = federation(archives, tmp_path, [None, None, None])  # the processes start anew
    second, _ = run_once(again, tmp_path / "two")
    for site in sites:
        before = first.summary["sites"][site.name]["epsilon"]
        assert second.summary["sites"][site.name]["epsilon"] > before * 1.2


def test_runs_by_patient_and_by_image_share_the_patients_account(archives, tmp_path):
    sites = federation(archives, tmp_path, [None, None, None])
    by_patient = replace(PLAN, privacy=replace(PLAN.privacy, unit=Unit.patient))
    alone, _ = run_once(federation(archives, tmp_path / "alone", [None] * 3), tmp_path, by_patient)
    run_once(sites, tmp_path / "one")
    both, _ = run_once(sites, tmp_path / "two", by_patient)
    for site in sites:
        alone_epsilon = alone.summary["sites"][site.name]["epsilon"]
        assert both.summary["sites"][site.name]["epsilon"] > alone_epsilon * 1.2
