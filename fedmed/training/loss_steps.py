"""What the accountants count: steps of the sampled Gaussian mechanism, as one unit sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LossSteps:
    """Steps of one kind, as seen by the unit whose epsilon is asked for.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm; above 0.
        sample_rate: probability that a contribution is in a step, in (0, 1].
        steps: number of steps; at least 1.
        contributions: how many clipped gradients, each sampled by itself, depend on the unit.
        changed: neighbours differ in what the one contribution *is* (from any vector within the
            clipping norm to any other), not in whether it is there.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    contributions: int = 1
    changed: bool = False

    @property
    def shift(self) -> float:
        """Largest distance between the neighbours' sums, in clipping norms."""
        return 2.0 if self.changed else float(self.contributions)

    @property
    def plain(self) -> bool:
        """Whether this is the sampled Gaussian under add-or-remove neighbours."""
        return self.contributions == 1 and not self.changed

    def once(self) -> LossSteps:
        """Return one step of this kind."""
        return replace(self, steps=1)
