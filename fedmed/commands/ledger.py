"""``fedmed ledger``: what a site's patients have spent, and what is left."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedmed.configuration.commands import ClientSettings
from fedmed.configuration.groups import SiteConfig, Unit
from fedmed.configuration.loading import load_settings
from fedmed.errors import ConfigurationError, DataError, PrivacyError
from fedmed.training.ledger import Ledger, Reservation, study_epsilon
from fedmed.training.present_plan import PresentPlan

_MOST_ROUNDS = 100_000
_EXAMPLES = """\
examples:
  fedmed ledger show site=cs
      what hospital cs has spent, from state/cs/ledger.jsonl
  fedmed ledger show site=cs site.state=/srv/fedmed/cs site.max_epsilon=8
      another state folder, and what would be left under another limit
  fedmed ledger show site=cs --delta 1e-6 --json
      epsilon at delta 1e-6, for a program to read"""


@dataclass(frozen=True)
class Account:
    """What one unit of one study has spent.

    Attributes:
        study: name of the account.
        unit: whose epsilon.
        rounds: reserved rounds of this unit; those of the other unit count in epsilon too.
        runs: runs that these rounds belong to.
        delta: at which epsilon is stated.
        epsilon: spent; None if no finite bound is known.
        limit: ``site.max_epsilon``; None is no limit.
        remaining: limit less epsilon, at least 0; None without a limit.
    """

    study: str
    unit: Unit
    rounds: int
    runs: int
    delta: float
    epsilon: float | None
    limit: float | None
    remaining: float | None


@dataclass(frozen=True)
class Outlook:
    """How far the present plan can go.

    Attributes:
        run, study, unit, delta: of the plan.
        rounds: planned.
        reserved: of them, reserved.
        affordable: how many more such rounds stay within the limit; None without a limit.
        left: rounds not yet reserved that are affordable.
    """

    run: str
    study: str
    unit: Unit
    delta: float
    rounds: int
    reserved: int
    affordable: int | None
    left: int


def ledger_command(arguments: Sequence[str], console: Console) -> int:
    """Run ``fedmed ledger show``.

    Raises:
        FedmedError: with what is wrong and the way out.
    """
    parser = argparse.ArgumentParser(
        prog="fedmed ledger",
        description="The durable record of the privacy that a site's patients have spent.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser(
        "show",
        help="spent, remaining, and rounds left of the present plan",
        description="Tell for each study and unit what was spent and what remains, and how many "
        "rounds of the present plan are left. Changes nothing; runs beside a client.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument(
        "overrides", nargs="*", metavar="key=value", help="as for the client: site=NAME, site.*"
    )
    show.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument(
        "--delta", type=float, help="state epsilon at this delta (the plan's, or site.max_delta)"
    )
    parsed, more = parser.parse_known_args(arguments)
    if options := [text for text in more if text.startswith("-")]:
        show.error(f"unknown option {options[0]}")
    # Settings may stand behind options as well. The archive is not read here: any will do.
    settings = load_settings(ClientSettings, "client", ["data=phantom", *parsed.overrides, *more])
    return _show(settings.site, parsed.delta, parsed.json, console)


def _show(site: SiteConfig, delta: float | None, as_json: bool, console: Console) -> int:
    if delta is not None and not 0 < delta < 1:
        raise ConfigurationError(f"--delta {delta:g}: choose one between 0 and 1, as 1e-5.")
    state = Path(site.state or f"state/{site.name}")
    try:
        entries = Ledger.read_only(state / "ledger.jsonl")
    except FileNotFoundError as error:
        raise DataError(
            f"{state / 'ledger.jsonl'}: there is no ledger. Nothing was reserved yet, or the state "
            "folder is another one: give site=NAME or site.state=DIR as the client has them."
        ) from error
    except OSError as error:
        raise DataError(f"{state / 'ledger.jsonl'}: {error.strerror}.") from error
    plan = _sensible(PresentPlan.read(state))
    found = accounts(entries, site, plan, delta)
    ahead = None if plan is None else outlook(entries, site, plan)
    if as_json:
        report = {
            "site": site.name,
            "accounts": [asdict(account) for account in found],
            "present_plan": None if ahead is None else asdict(ahead),
        }
        console.print(json.dumps(report, indent=2), markup=False, highlight=False, soft_wrap=True)
        return 0
    _print(found, ahead, site, console)
    return 0


def accounts(
    entries: Sequence[Reservation],
    site: SiteConfig,
    plan: PresentPlan | None,
    delta: float | None = None,
) -> list[Account]:
    """Return the account of each study and unit that has rounds, or that the plan spends from.

    Args:
        entries: the ledger.
        site: its limit and its largest delta.
        plan: the present plan, whose delta states its study's epsilon.
        delta: at which to state every epsilon instead.
    """
    keys = {(entry.study, unit) for entry in entries for unit in Unit}
    if plan is not None:
        keys.add((plan.study, plan.unit))
    found = []
    for study, unit in sorted(keys):
        own = [entry for entry in entries if (entry.study, entry.unit) == (study, unit)]
        planned = plan.delta if plan is not None and plan.study == study else site.max_delta
        at = delta if delta is not None else planned
        epsilon = study_epsilon(entries, study, unit, at)
        limit = site.max_epsilon
        found.append(
            Account(
                study=study,
                unit=unit,
                rounds=len(own),
                runs=len({entry.run for entry in own}),
                delta=at,
                epsilon=epsilon if math.isfinite(epsilon) else None,
                limit=limit,
                remaining=None if limit is None else max(0.0, limit - epsilon),
            )
        )
    return found


def outlook(entries: Sequence[Reservation], site: SiteConfig, plan: PresentPlan) -> Outlook:
    """Return how many more rounds of the present plan the site's limit allows."""
    reserved = {
        entry.round for entry in entries if entry.run == plan.run and entry.study == plan.study
    }
    unreserved = max(0, plan.rounds - len(reserved))
    affordable = None
    if site.max_epsilon is not None:
        limit = site.max_epsilon

        def fits(rounds: int) -> bool:
            planned = replace(plan.steps, steps=plan.steps.steps * max(rounds, 1))
            epsilon = study_epsilon(entries, plan.study, plan.unit, plan.delta, [planned])
            return epsilon <= limit

        affordable = largest_that_fits(fits, _MOST_ROUNDS)
    return Outlook(
        run=plan.run,
        study=plan.study,
        unit=plan.unit,
        delta=plan.delta,
        rounds=plan.rounds,
        reserved=len(reserved),
        affordable=affordable,
        left=unreserved if affordable is None else min(unreserved, affordable),
    )


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number from 0 to ``most`` that fits, by doubling and halving.

    Args:
        fits: true up to some number, false above it; zero rounds always fit.
        most: at least 1.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _sensible(plan: PresentPlan | None) -> PresentPlan | None:
    """Refuse a plan file that was damaged: figures from it would mislead."""
    if plan is None:
        return None
    probe = Reservation(
        run=plan.run,
        round=plan.rounds,
        steps=plan.steps,
        study=plan.study,
        unit=plan.unit,
        images_per_patient=plan.images_per_patient,
    )
    try:
        probe.check()
    except (PrivacyError, TypeError):
        return None
    return plan if isinstance(plan.delta, float) and 0 < plan.delta < 1 else None


def _print(
    found: Sequence[Account], ahead: Outlook | None, site: SiteConfig, console: Console
) -> None:
    table = Table("study", "unit", "rounds", "runs", "epsilon", "delta", "limit", "remaining")
    for account in found:
        table.add_row(
            account.study,
            str(account.unit),
            str(account.rounds),
            str(account.runs),
            "unbounded" if account.epsilon is None else f"{account.epsilon:.3f}",
            f"{account.delta:g}",
            "none" if account.limit is None else f"{account.limit:g}",
            "-" if account.remaining is None else f"{account.remaining:.3f}",
        )
    console.print(f"Privacy spent by site {site.name}", markup=False, highlight=False)
    console.print(table)
    console.print(
        "Epsilon counts all rounds of a study; those of the other unit are converted.",
        highlight=False,
    )
    if ahead is None:
        console.print("There is no present plan.", highlight=False)
        return
    limit = (
        "this site has no limit (site.max_epsilon)"
        if ahead.affordable is None
        else f"the limit would allow {_number(ahead.affordable)}"
    )
    console.print(
        f"Present plan: run {ahead.run}, study {ahead.study}, unit {ahead.unit}: "
        f"{ahead.reserved} of {ahead.rounds} rounds reserved, {ahead.left} left; {limit}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _number(rounds: int) -> str:
    return f"{_MOST_ROUNDS} or more" if rounds >= _MOST_ROUNDS else f"{rounds} more"
