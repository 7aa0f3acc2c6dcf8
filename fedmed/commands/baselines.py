"""Local-only and pooled models beside a simulated federation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clients.simulated import SimulatedSites
from fedmed.configuration.commands import SimulateSettings
from fedmed.data.image_set import ImageSet
from fedmed.federation.observer import Observer
from fedmed.federation.records import Request
from fedmed.tasks.base import merge
from fedmed.training.baselines import Baseline, train_baseline
from fedmed.training.evaluate import evaluate
from fedmed.training.noise import NoiseSource, SecureNoise, SeededNoise
from fedmed.training.seeds import derive_seed


def compare_with_baselines(
    settings: SimulateSettings, sites: SimulatedSites, observer: Observer
) -> dict[str, object]:
    """Train each site alone and all together, and test every model on the same images.

    Returns:
        ``local``: metrics of each local-only model on the union of the test sets, the images
        that the global figure is of; ``local_own_test``: on the site's own test set; ``pooled``:
        metrics of the pooled model on the union.
    """
    plan = settings.plan()
    initial = Path(settings.model.init) if settings.model.init else None
    request = Request("baselines", 0, plan.to_json())
    cohorts = {name: sites.site_named(name).cohort(request) for name in sites.names}
    task = sites.site_named(sites.names[0]).task(request)
    tests = {name: cohort.splits["test"] for name, cohort in cohorts.items()}

    def noise(name: str) -> NoiseSource:
        if settings.simulation.seeded_noise:
            return SeededNoise(derive_seed(plan.seed, "noise", name))
        return SecureNoise()

    def scores(name: str, images: ImageSet, report: Callable[[float], None]) -> dict[str, object]:
        baseline = Baseline(name, images, report, initial)
        model = train_baseline(plan, task, baseline, settings.site.device, noise(name))
        parts = {site: evaluate(model, test, task) for site, test in tests.items()}
        union = task.metrics(merge([parts[site] for site in sorted(parts)]))
        own = task.metrics(parts[name]) if name in parts else {}
        return {"union": union, "own": own}

    def report(name: str) -> Callable[[float], None]:
        return lambda share: observer.site_progress(name, share)

    local, own_test = {}, {}
    for name in sites.names:
        images = cohorts[name].splits["train"]
        result = scores(name, images, report(f"{name} alone"))
        local[name], own_test[name] = result["union"], result["own"]
    everything = ImageSet.union([cohorts[name].splits["train"] for name in sites.names])
    pooled = scores("pooled", everything, report("pooled"))
    return {"local": local, "local_own_test": own_test, "pooled": pooled["union"]}
