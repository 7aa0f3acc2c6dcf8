"""A run folder, read into frozen records.

The folder may come from a run that was killed, or from another machine: a torn line, a metric
that is ``NaN`` or a missing part is not an error, and text from sites is cleaned here, once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import cast

from fedmed.errors import DataError


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Of ``summary.json`` and ``rounds.jsonl`` one is enough. A line of ``rounds.jsonl`` that cannot
    be read is counted; of a round that was run twice (after a resume) the last record is taken.

    Raises:
        DataError: if the folder holds neither file, or ``summary.json`` or ``model.json`` is no
            JSON object.
    """
    stored = _json_object(folder / "summary.json")
    lines = _bytes(folder / "rounds.jsonl")
    if stored is None and lines is None:
        raise DataError(
            f"'{_folder_name(folder)}' is no run folder: it has neither summary.json nor "
            "rounds.jsonl. Name the folder that a run wrote, such as outputs/DATE/TIME."
        )
    rounds, unreadable = _read_rounds(lines or b"")
    card = _json_object(folder / "model.json")
    configuration = _bytes(folder / "config.yaml")
    return RunRecord(
        name=_folder_name(folder),
        summary=_summary_of_unfinished(rounds) if stored is None else parse_summary(stored),
        rounds=rounds,
        model=None if card is None else _parse_model(card),
        configuration=None if configuration is None else _lines_of_text(configuration),
        unreadable_lines=unreadable,
    )


def parse_summary(stored: Mapping[str, object]) -> RunSummary:
    """Read the object of ``summary.json``; what is missing or of another type becomes ``None``.

    ``baselines.local`` is taken as measured on each site's own test images, unless there is
    ``baselines.local_own_test``: then that is, and ``local`` is on the test images of all sites.
    """
    baselines = _object(stored.get("baselines"))
    transport = _object(stored.get("transport"))
    privacy = _object(stored.get("privacy"))
    all_tests = _metrics_by_site(baselines.get("local"))
    own_test = _metrics_by_site(baselines.get("local_own_test"))
    secure_aggregation = transport.get("secure_aggregation")
    return RunSummary(
        task=clean_text(stored.get("task") or "unknown task"),
        state=clean_text(stored.get("state") or "state not recorded"),
        rounds=_count(stored.get("rounds")) or 0,
        seconds=_number(stored.get("seconds")),
        parameters=_count(stored.get("parameters")),
        metrics=_numbers(stored.get("metrics")),
        metric_error=_numbers(stored.get("metric_error")),
        sites=tuple(
            _parse_site(clean_text(name), _object(site))
            for name, site in _object(stored.get("sites")).items()
        ),
        local=own_test or all_tests,
        local_everywhere=all_tests if own_test else {},
        refused={
            clean_text(name): clean_text(reason)
            for name, reason in _object(stored.get("refused")).items()
        },
        pooled=_numbers(baselines.get("pooled")),
        bytes_up=_count(transport.get("bytes_up")),
        bytes_down=_count(transport.get("bytes_down")),
        secure_aggregation=secure_aggregation if isinstance(secure_aggregation, bool) else None,
        privacy=PrivacySummary(
            preset=_text(privacy.get("preset")),
            unit=_text(privacy.get("unit")),
            target_epsilon=_number(privacy.get("target_epsilon")),
            noise=_text(privacy.get("noise")),
        ),
        seed=_count(stored.get("seed")),
        plan_sha256=_text(stored.get("plan_sha256")),
    )


def parse_round(stored: Mapping[str, object]) -> RoundRecord | None:
    """Read the object of one line of ``rounds.jsonl``; ``None`` if it has no round number."""
    number = _count(stored.get("round"))
    if number is None:
        return None
    participants = stored.get("participants")
    transferred = _object(stored.get("bytes"))
    return RoundRecord(
        number=number,
        metrics=_numbers(stored.get("metrics")),
        loss=_number(stored.get("loss")),
        learning_rate=_number(stored.get("learning_rate")),
        participants=tuple(
            clean_text(name)
            for name in (participants if isinstance(participants, list | tuple) else ())
        ),
        sites={
            clean_text(name): _parse_site_round(_object(site))
            for name, site in _object(stored.get("sites")).items()
        },
        seconds=_numbers(stored.get("seconds")),
        bytes_up=_count(transferred.get("up")),
        bytes_down=_count(transferred.get("down")),
    )


def _parse_site(name: str, stored: Mapping[str, object]) -> SiteSummary:
    return SiteSummary(
        name=name,
        train=_count(stored.get("train")),
        val=_count(stored.get("val")),
        test=_count(stored.get("test")),
        excluded=_counts(stored.get("excluded")),
        epsilon=_number(stored.get("epsilon")),
        delta=_number(stored.get("delta")),
        metrics=_numbers(stored.get("metrics")),
    )


def _parse_site_round(stored: Mapping[str, object]) -> SiteRound:
    return SiteRound(
        status=clean_text(stored.get("status") or "not recorded"),
        reason=_text(stored.get("reason")),
        examples=_count(stored.get("examples")),
        loss=_number(stored.get("loss")),
        epsilon=_number(stored.get("epsilon")),
        metrics=_numbers(stored.get("metrics")),
    )


def _parse_model(stored: Mapping[str, object]) -> ModelCard:
    labels = stored.get("labels")
    return ModelCard(
        architecture={
            clean_text(key): clean_text(value)
            for key, value in _object(stored.get("architecture")).items()
        },
        parameters=_count(stored.get("parameters")),
        labels=tuple(clean_text(label) for label in (labels if isinstance(labels, list) else ())),
        sha256=_text(stored.get("sha256")),
    )


def _read_rounds(content: bytes) -> tuple[tuple[RoundRecord, ...], int]:
    records: dict[int, RoundRecord] = {}
    unreadable = 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            stored = json.loads(line)
        except (ValueError, RecursionError):
            stored = None
        record = parse_round(stored) if isinstance(stored, dict) else None
        if record is None:
            unreadable += 1
        else:
            records[record.number] = record
    return tuple(records[number] for number in sorted(records)), unreadable


def _summary_of_unfinished(rounds: tuple[RoundRecord, ...]) -> RunSummary:
    """Return what the rounds alone tell: names of sites and their last epsilon."""
    epsilons: dict[str, float | None] = {}
    for record in rounds:
        for name, site in record.sites.items():
            epsilons[name] = epsilons.get(name) if site.epsilon is None else site.epsilon
    return RunSummary(
        task="unknown task",
        state="unfinished",
        rounds=len(rounds),
        sites=tuple(SiteSummary(name, epsilon=epsilon) for name, epsilon in epsilons.items()),
    )


def _folder_name(folder: Path) -> str:
    return clean_text("/".join(folder.resolve().parts[-2:]))


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"'{_folder_name(path.parent)}/{path.name}' cannot be read: {error.strerror}."
        ) from error


def _lines_of_text(content: bytes) -> str:
    lines = content.decode("utf-8", errors="replace").splitlines()
    return "\n".join(clean_text(line, limit=1000) for line in lines)


def _json_object(path: Path) -> dict[str, object] | None:
    content = _bytes(path)
    if content is None:
        return None
    try:
        stored = json.loads(content)
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise DataError(
            f"'{_folder_name(path.parent)}/{path.name}' is not a JSON object. Remove the file to "
            "report what the rest of the run folder tells."
        )
    return stored
