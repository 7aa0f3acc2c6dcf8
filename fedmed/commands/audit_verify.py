"""``fedmed audit verify``: check a run's transparency log, and say what that proves."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from fedmed.errors import ConfigurationError
from fedmed.trust.audit.findings import AuditReport, SiteFindings
from fedmed.trust.audit.verify import verify_bundle

_DESCRIPTION = """\
Check the transparency log of a run from the first byte to the last, without a network. BUNDLE is
the folder RUN/audit, or a zip file of it. Get root.crt from the consortium, not from the server."""
_EXAMPLES = """\
examples:
  fedmed audit verify outputs/2026-01-31/12-00-00/audit --root root.crt
      everything in the bundle, against the consortium's root
  fedmed audit verify audit.zip --root root.crt --site north --from state/north/witness.json
      also: it continues what hospital north has seen, by the state of its witness
  fedmed audit verify audit.zip --root root.crt --from the-zip-another-hospital-got.zip
      also: it continues the bundle that somebody else was given

exit code: 0 everything holds, 2 a file is not there, 6 something does not hold."""


def verify_command(arguments: Sequence[str], console: Console) -> int:
    """Run ``fedmed audit verify``; ``arguments`` are the words after that.

    Returns:
        0: everything holds.

    Raises:
        ProtocolError: naming line, round, site and what does not hold.
        ConfigurationError: if a file cannot be read.
    """
    parsed = _parse(arguments)
    try:
        root = parsed.root.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {parsed.root.name}: {error.strerror}") from error
    report = verify_bundle(parsed.bundle, root, site=parsed.site, earlier=parsed.earlier)
    proven, unproven = proven_sentences(report), unproven_sentences(report)
    if parsed.json:
        content = {
            "report": asdict(report),
            "signatures": report.signatures,
            "proven": proven,
            "not_proven": unproven,
        }
        console.print(json.dumps(content, indent=2), markup=False, highlight=False, soft_wrap=True)
        return 0
    for title, sentences in (("Proven:", proven), ("Not proven:", unproven)):
        console.print(title, style="bold")
        for sentence in sentences:
            console.print(f"  - {sentence}", markup=False, highlight=False, soft_wrap=True)
    return 0


def proven_sentences(report: AuditReport) -> list[str]:
    """Say what the bundle proves, each with counts."""
    sentences = [
        f"This is the log of run {report.origin.partition('/')[2]}, kept by the server "
        f"{report.origin.partition('/')[0]!r} of {report.consortium!r}; "
        f"{_counted(report.rosters, 'roster')} in it signed by the root with the fingerprint "
        f"{report.root_fingerprint}.",
        f"No byte was changed, removed, added or moved since it was signed: "
        f"{_counted(report.leaves, 'leaf', 'leaves')}, each under a head that the server signed, "
        f"each head continuing the one before. Newest: {report.head}.",
    ]
    if report.rounds or report.evaluations:
        sentences.append(
            f"{_counted(report.rounds, 'round')} of training and "
            f"{_counted(report.evaluations, 'evaluation')} with secure aggregation: "
            f"{_counted(report.masked, 'masked input')} and "
            f"{_counted(report.confirmations, 'confirmation')}, each signed by its site over run, "
            "round, sites asked, roster, plan, model and log. In each, more than two thirds of the "
            "sites asked confirmed who is in the sum."
        )
    if report.open_rounds:
        sentences.append(
            f"{_counted(report.open_rounds, 'round')} (evaluations with them) WITHOUT secure "
            "aggregation: "
            f"{_counted(report.updates, 'update')}, each signed by its site; the server saw each."
        )
    if report.rounds or report.open_rounds or report.evaluations:
        sentences.append(
            "All of them followed the plan that the run started with, and each began with the "
            f"model that the one before ended with. The last model is {report.model}."
        )
    stated = [found.epsilon for found in report.sites.values() if found.epsilon is not None]
    if stated:
        sentences.append(
            f"{_counted(len(stated), 'site')} signed an epsilon in each round that it delivered; "
            f"none ever fell, and the largest is {max(stated):.4g}."
        )
    if report.resumed or report.abandoned:
        sentences.append(
            f"The server went back to an earlier model {_counted(report.resumed, 'time')} and gave "
            f"up {_counted(report.abandoned, 'attempt')}; what it did then is in the log."
        )
    if report.witnessed:
        sentences.append(
            f"Sites cosigned {_counted(report.cosignatures, 'time')}, last the head of "
            f"{_counted(report.witnessed, 'leaf', 'leaves')} ({', '.join(report.witnesses)}): "
            "each saw this history up to there, and its witness refuses any other."
        )
    if report.site:
        sentences.append(_site_sentence(report.site, report.sites[report.site]))
    if report.earlier:
        sentences.append(
            f"It continues the earlier {report.earlier.source}: "
            f"{_counted(report.earlier.heads, 'head')} compared, the newest of "
            f"{_counted(report.earlier.size, 'leaf', 'leaves')}."
        )
    return sentences


def unproven_sentences(report: AuditReport) -> list[str]:
    """Say what no log can prove, and what this one does not."""
    rest = report.leaves - report.witnessed
    sentences = [
        "That the sites' data were good, or that a site trained as it should: a site can sign "
        "a masked input that it did not compute honestly.",
        "That epsilon is right: it is each site's own statement.",
        "That the server dropped no site's message: a site that is missing in a round may have "
        "failed, or may have been left out.",
        "That the model after a round is the aggregate of the round's inputs: the sum cannot be "
        "worked out from a log, only that all later rounds went on from that model.",
        "That a time is right: all are by the server's clock.",
        "That the file given with --root is the consortium's: compare its fingerprint over the "
        "phone.",
    ]
    if rest:
        sentences.insert(
            0,
            f"The newest {_counted(rest, 'leaf', 'leaves')}: no site has cosigned them yet, so the "
            "server can still write them anew.",
        )
    if not report.earlier:
        sentences.insert(
            0,
            "That nobody was shown another history after the last cosigned head: compare with what "
            "a site has seen (--site and --from).",
        )
    if report.site and not report.earlier:
        sentences.append(
            f"That {report.site!r} sent no more than is here: give its state (--from)."
        )
    if report.open_rounds:
        sentences.append(
            "That single updates were kept from the server: in rounds without secure aggregation "
            "it has them."
        )
    sentences.append(
        f"Anything after {datetime.fromtimestamp(report.last_time, UTC):%Y-%m-%d %H:%M} UTC, when "
        "the newest head was signed."
    )
    return sentences


def _site_sentence(site: str, found: SiteFindings) -> str:
    epsilon = "" if found.epsilon is None else f", epsilon {found.epsilon:.4g} stated last"
    return (
        f"Site {site!r}: asked in {_counted(found.asked, 'round')}, its signed message is in "
        f"{found.delivered} of them, it confirmed the survivors of {found.confirmed} and cosigned "
        f"{_counted(found.cosigned, 'head')}, the newest of size {found.last_cosigned}{epsilon}. "
        "Compare these with the site's own record (egress.jsonl)."
    )


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fedmed audit verify",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder or zip file")
    parser.add_argument(
        "--root", type=Path, required=True, metavar="FILE", help="the consortium's root.crt"
    )
    parser.add_argument("--site", metavar="NAME", help="also count what is there of this site")
    parser.add_argument(
        "--from",
        dest="earlier",
        type=Path,
        metavar="OLD",
        help="a witness' state file, a checkpoint or an earlier bundle, which BUNDLE must continue",
    )
    parser.add_argument("--json", action="store_true", help="for a program to read")
    return parser.parse_args(list(arguments))
