"""``fedmed doctor``: has this hospital's client all that it needs, and how fast will it be?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmed.assurance.doctor.check_result import CheckResult, State
from fedmed.assurance.doctor.examination import Examination
from fedmed.configuration.commands import ClientSettings, ServerSettings
from fedmed.configuration.loading import load_settings
from fedmed.configuration.plan import PlanSettings

EXAMPLES = """\
  fedmed doctor site=cs data.root=/data link.address=fl.example.org:8443
      with the words that the client is started with: all that it will need is checked
  fedmed doctor site=cs data.root=/data link.proxy=http://proxy.example.org:3128
      the same through the hospital's proxy
  fedmed doctor site=cs data.root=/data model.width=32 preprocessing.size=256 privacy=high
      predict the time of a round of another plan: the server's settings may stand here too"""

_PLAN_GROUPS = frozenset(entry.name for entry in fields(PlanSettings))
_COLOURS = {
    State.ok: "green",
    State.warning: "yellow",
    State.failed: "bold red",
    State.not_measured: "dim",
}


def examine_site(arguments: Sequence[str], console: Console) -> int:
    """Run all checks of a site, print them, and return 1 if one failed.

    Args:
        arguments: the client's settings; those of a plan as the server has them.
        console: where the table goes.

    Raises:
        FedmedError: the settings themselves cannot be read.
    """
    planned = [word for word in arguments if _group(word) in _PLAN_GROUPS]
    own = [word for word in arguments if _group(word) not in _PLAN_GROUPS]
    settings = load_settings(ClientSettings, "client", own)
    plan = load_settings(ServerSettings, "server", planned).plan()
    examination = Examination(settings, plan, plan_given=bool(planned))
    results = []
    with console.status("checking") as status:
        for result in examination.results():
            results.append(result)
            status.update(f"{result.name}: {result.state}")
    console.print(f"Site {settings.site.name}", markup=False, highlight=False)
    console.print(_table(results))
    counts = Counter(result.state for result in results)
    console.print(
        ", ".join(f"{counts[state]} {state}" for state in State if counts[state]),
        highlight=False,
    )
    return 1 if counts[State.failed] else 0


def _group(word: str) -> str:
    """Return the group that an override such as ``+model.width=32`` is about."""
    return re.split(r"[.=@]", word.lstrip("+~"), maxsplit=1)[0]


def _table(results: Sequence[CheckResult]) -> Table:
    table = Table("check", "state", "found", "way out")
    for result in results:
        table.add_row(
            result.name,
            Text(str(result.state), style=_COLOURS[result.state]),
            # Text, not markup: names come from rosters and other machines.
            Text(_cleaned(result.detail)),
            Text(_cleaned(result.remedy)),
        )
    return table


def _cleaned(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
