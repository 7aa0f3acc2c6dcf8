"""A run folder, read into frozen records.

The folder may come from a run that was killed, or from another machine: a torn line, a metric
that is ``NaN`` or a missing part is not an error, and text from sites is cleaned here, once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from fedmed.assurance.report.records import (
    GuaranteeRecord,
    ModelCard,
    PrivacySummary,
    RoundRecord,
    RunRecord,
    RunSummary,
    SiteRound,
    SiteSummary,
)
from fedmed.assurance.report.stored_values import (
    count_from,
    counts_from,
    metrics_by_site,
    number_from,
    numbers_from,
    object_from,
    text_from,
)
from fedmed.assurance.report.wording import clean_text
from fedmed.errors import DataError

LOCAL_SETTINGS = ("data", "site", "link", "tracking", "resume")
"""Parts of ``config.yaml`` that no report shows: a page that is shared names nobody's paths."""


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
    settings = _bytes(folder / "config.yaml")
    return RunRecord(
        name=_folder_name(folder),
        summary=_summary_of_unfinished(rounds) if stored is None else parse_summary(stored),
        rounds=rounds,
        model=None if card is None else _parse_model(card),
        configuration=None if settings is None else _shared_settings(settings),
        unreadable_lines=unreadable,
    )


def parse_summary(stored: Mapping[str, object]) -> RunSummary:
    """Read the object of ``summary.json``; what is missing or of another type becomes ``None``.

    ``baselines.local`` is taken as measured on each site's own test images, unless there is
    ``baselines.local_own_test``: then that is, and ``local`` is on the test images of all sites.
    """
    baselines = object_from(stored.get("baselines"))
    transport = object_from(stored.get("transport"))
    privacy = object_from(stored.get("privacy"))
    all_tests = metrics_by_site(baselines.get("local"))
    own_test = metrics_by_site(baselines.get("local_own_test"))
    secure_aggregation = transport.get("secure_aggregation")
    return RunSummary(
        task=clean_text(stored.get("task") or "unknown task"),
        state=clean_text(stored.get("state") or "state not recorded"),
        rounds=count_from(stored.get("rounds")) or 0,
        seconds=number_from(stored.get("seconds")),
        parameters=count_from(stored.get("parameters")),
        metrics=numbers_from(stored.get("metrics")),
        metric_error=numbers_from(stored.get("metric_error")),
        sites=tuple(
            _parse_site(clean_text(name), object_from(site))
            for name, site in object_from(stored.get("sites")).items()
        ),
        local=own_test or all_tests,
        local_everywhere=all_tests if own_test else {},
        refused={
            clean_text(name): clean_text(reason)
            for name, reason in object_from(stored.get("refused")).items()
        },
        pooled=numbers_from(baselines.get("pooled")),
        bytes_up=count_from(transport.get("bytes_up")),
        bytes_down=count_from(transport.get("bytes_down")),
        secure_aggregation=secure_aggregation if isinstance(secure_aggregation, bool) else None,
        transport_mode=text_from(transport.get("mode")),
        privacy=PrivacySummary(
            preset=text_from(privacy.get("preset")),
            unit=text_from(privacy.get("unit")),
            target_epsilon=number_from(privacy.get("target_epsilon")),
            noise=text_from(privacy.get("noise")),
            model=text_from(privacy.get("model")),
            guarantees=_parse_guarantees(privacy.get("guarantees")),
        ),
        seed=count_from(stored.get("seed")),
        plan_sha256=text_from(stored.get("plan_sha256")),
    )


def _parse_guarantees(stored: object) -> tuple[GuaranteeRecord, ...]:
    entries = [object_from(entry) for entry in stored] if isinstance(stored, list) else []
    return tuple(
        GuaranteeRecord(
            adversary=adversary,
            epsilon=number_from(entry.get("epsilon")),
            because=text_from(entry.get("because")),
        )
        for entry in entries
        if (adversary := text_from(entry.get("adversary"))) is not None
    )


def parse_round(stored: Mapping[str, object]) -> RoundRecord | None:
    """Read the object of one line of ``rounds.jsonl``; ``None`` if it has no round number."""
    number = count_from(stored.get("round"))
    if number is None:
        return None
    participants = stored.get("participants")
    transferred = object_from(stored.get("bytes"))
    return RoundRecord(
        number=number,
        metrics=numbers_from(stored.get("metrics")),
        loss=number_from(stored.get("loss")),
        learning_rate=number_from(stored.get("learning_rate")),
        participants=tuple(
            clean_text(name)
            for name in (participants if isinstance(participants, list | tuple) else ())
        ),
        sites={
            clean_text(name): _parse_site_round(object_from(site))
            for name, site in object_from(stored.get("sites")).items()
        },
        seconds=numbers_from(stored.get("seconds")),
        bytes_up=count_from(transferred.get("up")),
        bytes_down=count_from(transferred.get("down")),
    )


def _parse_site(name: str, stored: Mapping[str, object]) -> SiteSummary:
    return SiteSummary(
        name=name,
        train=count_from(stored.get("train")),
        val=count_from(stored.get("val")),
        test=count_from(stored.get("test")),
        excluded=counts_from(stored.get("excluded")),
        # Written down as null: nobody but the site knows.
        keeps_counts="train" in stored and stored["train"] is None,
        epsilon=number_from(stored.get("epsilon")),
        delta=number_from(stored.get("delta")),
        metrics=numbers_from(stored.get("metrics")),
    )


def _parse_site_round(stored: Mapping[str, object]) -> SiteRound:
    return SiteRound(
        status=clean_text(stored.get("status") or "not recorded"),
        reason=text_from(stored.get("reason")),
        examples=count_from(stored.get("examples")),
        loss=number_from(stored.get("loss")),
        epsilon=number_from(stored.get("epsilon")),
        metrics=numbers_from(stored.get("metrics")),
    )


def _parse_model(stored: Mapping[str, object]) -> ModelCard:
    labels = stored.get("labels")
    return ModelCard(
        architecture={
            clean_text(key): clean_text(value)
            for key, value in object_from(stored.get("architecture")).items()
        },
        parameters=count_from(stored.get("parameters")),
        labels=tuple(clean_text(label) for label in (labels if isinstance(labels, list) else ())),
        sha256=text_from(stored.get("sha256")),
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


def _shared_settings(content: bytes) -> str | None:
    """Return ``config.yaml`` without the settings of one machine; ``None`` if it cannot be read.

    It is parsed and written again: to cut lines out of a text that is not understood could leave
    a path behind.
    """
    try:
        stored = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(stored, dict):
        return None
    shared = {key: value for key, value in stored.items() if key not in LOCAL_SETTINGS}
    if isinstance(shared.get("model"), dict):
        shared["model"].pop("init", None)
    lines = str(yaml.safe_dump(shared, sort_keys=False, allow_unicode=True)).splitlines()
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
