"""Why a secure aggregation gave no sum."""

from __future__ import annotations

from collections.abc import Iterable

from fedmed.errors import FederationError


class AggregationError(FederationError):
    """No sum was opened and none can be: the shares that the server has are too few.

    Attributes:
        step: ``prepare``, ``train``, ``confirm`` or ``reveal``.
        missing: sites of the step before that gave no valid answer, sorted.
        suspects: sites whose shares were wrong, sorted; empty if it is not known.
        survivors: empty before ``confirm``. After it, sites may have written these names down: at
            the same round they sum these sites only, so a further attempt must have the same ones.
    """

    def __init__(
        self,
        step: str,
        reason: str,
        *,
        missing: Iterable[str] = (),
        suspects: Iterable[str] = (),
        survivors: Iterable[str] = (),
    ) -> None:
        self.step = step
        self.missing = tuple(sorted(missing))
        self.suspects = tuple(sorted(suspects))
        self.survivors = tuple(sorted(survivors))
        text = f"Secure aggregation stopped at the step {step!r}: {reason}."
        if self.missing:
            text += f" Without a valid answer: {', '.join(self.missing)}."
        if self.suspects:
            text += f" Wrong shares came from: {', '.join(self.suspects)}."
        super().__init__(
            f"{text} No update and no sum was opened. Try the round again with the sites that "
            "answer, or look at the sites named."
        )
