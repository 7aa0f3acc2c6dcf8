"""What an audit leaves on disk: ``privacy_audit.json`` and an image of each inversion."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedmed.assurance.privacy_audit.audit import PrivacyAudit
from fedmed.assurance.privacy_audit.inversion import Reconstruction, correlation

RECORD = "privacy_audit.json"


def write_audit(audit: PrivacyAudit, folder: Path) -> list[Path]:
    """Write the record and the images; return their paths, the record first.

    Args:
        audit: what was found.
        folder: made if needed; files of an earlier audit are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RECORD
    text = json.dumps(audit_values(audit), indent=2, sort_keys=True, allow_nan=False)
    record.write_text(text + "\n", encoding="utf-8")
    paths = [record]
    for one in audit.reconstructions:
        path = folder / f"inversion_{one.attack.replace(' ', '_')}.png"
        _draw(one, path)
        paths.append(path)
    return paths


def audit_values(audit: PrivacyAudit) -> dict[str, object]:
    """Return the audit without its images, as values that JSON can hold."""
    findings = [
        {**asdict(finding), "figures": {k: _finite(v) for k, v in finding.figures.items()}}
        for finding in audit.findings
    ]
    return {
        "verdict": audit.verdict,
        "noise": audit.noise,
        "claim": {
            "epsilon": _finite(audit.epsilon),
            "delta": audit.delta,
            "unit": audit.unit,
            "noise_multiplier": audit.noise_multiplier,
            "sample_rate": audit.sample_rate,
            "steps": audit.steps,
        },
        "findings": findings,
    }


def _finite(value: float | int | list[float]) -> float | int | list[float] | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draw(result: Reconstruction, path: Path) -> None:
    """Draw the original, and what was read from the updates without and with privacy."""
    panels = {
        "the image": result.original,
        "from the update without privacy": result.unprotected,
        "from the update with privacy": result.protected,
    }
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Gradient inversion, {result.attack}")
    for axes, (title, image) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"correlation {correlation(image, result.original):.2f}")
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(path)
