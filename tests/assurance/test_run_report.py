from __future__ import annotations

import io
import itertools
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedmed.assurance.report.drawing import DARK, LIGHT
from fedmed.assurance.report.page import render_report, write_report
from fedmed.assurance.report.plots import (
    epsilon_plot,
    metric_plot,
    seconds_plot,
    sites_plot,
    write_plots,
)
from fedmed.assurance.report.run_folder import read_run
from fedmed.assurance.report.statements import aggregation_statement, findings, privacy_statement
from fedmed.assurance.report.tables import sites_table
from fedmed.assurance.report.wording import (
    bytes_text,
    clean_text,
    epsilon_text,
    seconds_text,
    share_text,
)
from fedmed.errors import DataError

HOSTILE = '<script>alert("1")</script>'
SITE_COLOURS = {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)}
NAMES = ["alder", "birch", "cedar"]


def round_line(number: int, names: list[str], *, private: bool) -> dict[str, object]:
    quality = 0.6 + 0.03 * number
    return {
        "round": number,
        "metrics": {"auroc": quality, "accuracy": quality - 0.1},
        "loss": 0.7 / number,
        "learning_rate": 0.001,
        "participants": names,
        "sites": {
            name: {
                "status": "ok",
                "reason": None,
                "examples": 100 + index,
                "loss": 0.5,
                "epsilon": 0.5 * number if private else None,
                "metrics": {"auroc": quality + 0.002 * (index % 10)},
            }
            for index, name in enumerate(names)
        },
        "seconds": {"train": 4.0, "aggregate": 0.5, "evaluate": 1.0, "checkpoint": 0.25},
        "bytes": {"down": 1000, "up": 2000},
    }


def summary_of(names: list[str], rounds: int, *, private: bool) -> dict[str, object]:
    return {
        "task": "classification",
        "state": "completed",
        "rounds": rounds,
        "seconds": 187.0,
        "parameters": 175218,
        "metrics": {"accuracy": 0.8512, "auroc": 0.9123},
        "metric_error": {"auroc": 0.0021},
        "sites": {
            name: {
                "train": 1140 + index,
                "val": 220 + index,
                "test": 340 + index,
                "excluded": {"no consent": 3, "unreadable": 17},
                "epsilon": 7.5 - 0.01 * index if private else None,
                "delta": 1.5e-5 if private else None,
                "metrics": {"auroc": 0.90 + 0.001 * index, "accuracy": 0.8 + 0.001 * index},
            }
            for index, name in enumerate(names)
        },
        "baselines": {
            "local": {
                name: {"auroc": 0.82 + 0.002 * index, "accuracy": 0.7}
                for index, name in enumerate(names)
            },
            "pooled": {"auroc": 0.9321, "accuracy": 0.8642},
        },
        "transport": {"bytes_up": 7654321, "bytes_down": 3456789, "secure_aggregation": True},
        "privacy": {
            "preset": "medium" if private else "off",
            "unit": "image",
            "target_epsilon": 8.0 if private else None,
            "noise": "secure" if private else "off",
        },
    }  # fmt: skip


def fabricate(
    folder: Path,
    names: list[str] = NAMES,
    rounds: int = 5,
    *,
    private: bool = True,
    **changes: object,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(round_line(n, names, private=private)) for n in range(1, rounds + 1)]
    (folder / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    summary = summary_of(names, rounds, private=private) | changes
    (folder / "summary.json").write_text(json.dumps(summary))
    card = {
        "architecture": {"name": "residual_cnn", "width": 16},
        "parameters": 175218,
        "labels": ["negative", "positive"],
        "sha256": "c0ffee" * 10,
    }
    (folder / "model.json").write_text(json.dumps(card))
    (folder / "config.yaml").write_text("federation:\n  rounds: 5 # <b>\n")
    return folder


class Page(HTMLParser):
    """Collects what the tests ask of a page; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "source", "br", "link", "input"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in {"th", "td"}:
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], self.open
        self.open.pop()

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] in {"th", "td"}:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes a second a page; most pages are read for their words."""
    monkeypatch.setattr("fedmed.assurance.report.page.PLOTS", {})


def colours(image: bytes) -> set[tuple[int, ...]]:
    decoded = Image.open(io.BytesIO(image)).convert("RGB")
    return {colour for _, colour in decoded.getcolors(maxcolors=2**24)}


# --- reading


def test_run_folder_is_read_as_it_was_written(tmp_path):
    run = read_run(fabricate(tmp_path / "run"))
    assert [record.number for record in run.rounds] == [1, 2, 3, 4, 5]
    assert run.rounds[2].metrics["auroc"] == pytest.approx(0.69)
    assert run.rounds[2].sites["birch"].epsilon == 1.5
    assert run.rounds[0].replied == ("alder", "birch", "cedar")
    assert run.summary.images == (1141 * 3, 221 * 3, 341 * 3)
    assert run.summary.excluded == 60
    assert run.summary.largest_epsilon == 7.5
    assert run.main_metric == "auroc"
    assert run.model is not None
    assert run.model.labels == ("negative", "positive")
    assert run.unreadable_lines == 0


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("missing", [1, 2, 50, "all but one byte"])
def test_torn_last_line_costs_that_round_only(tmp_path, missing):
    folder = fabricate(tmp_path / "run", ["alder", "höglund"])
    path = folder / "rounds.jsonl"
    content = path.read_text().replace("h\\u00f6glund", "höglund").encode()
    last = content.rstrip(b"\n").rsplit(b"\n", 1)[1]
    cut = len(last) - 1 if missing == "all but one byte" else missing
    path.write_bytes(content.rstrip(b"\n")[:-cut])
    run = read_run(folder)
    assert [record.number for record in run.rounds] == [1, 2, 3, 4]
    assert run.unreadable_lines == 1
    assert "1 line of rounds.jsonl that cannot be read" in page_of(folder).text


def test_line_cut_inside_a_character_is_no_crash(tmp_path):
    folder = fabricate(tmp_path / "run", rounds=1)
    with (folder / "rounds.jsonl").open("ab") as file:
        file.write('{"round": 2, "participants": ["hö'.encode()[:-1])
    assert len(read_run(folder).rounds) == 1


def test_round_that_was_run_again_counts_once(tmp_path):
    folder = fabricate(tmp_path / "run", rounds=2)
    again = round_line(2, NAMES, private=True) | {"loss": 0.125}
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    assert [(r.number, r.loss) for r in read_run(folder).rounds] == [(1, 0.7), (2, 0.125)]


def test_values_that_are_no_finite_number_count_as_not_measured(tmp_path):
    folder = fabricate(
        tmp_path / "run",
        metrics={"auroc": math.nan, "accuracy": None, "sensitivity": True, "ece": 10**400},
        seconds=math.inf,
        parameters="many",
    )
    summary = read_run(folder).summary
    assert summary.metrics == {}
    assert summary.seconds is None
    assert summary.parameters is None


def test_folder_without_a_run_is_refused_without_its_absolute_path(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty.*summary\.json") as caught:
        read_run(tmp_path / "empty")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["summary.json", "model.json"])
@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "\xff"])
def test_broken_file_is_named(tmp_path, name, content):
    folder = fabricate(tmp_path / "run")
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=re.escape(name)):
        read_run(folder)


@pytest.mark.usefixtures("no_plots")
def test_run_that_was_killed_before_its_summary_is_reported(tmp_path):
    folder = fabricate(tmp_path / "run")
    for name in ("summary.json", "model.json", "config.yaml"):
        (folder / name).unlink()
    summary = read_run(folder).summary
    assert summary.state == "unfinished"
    assert [(site.name, site.epsilon) for site in summary.sites] == [(n, 2.5) for n in NAMES]
    text = page_of(folder).text
    assert "The run wrote no summary" in text
    assert "No privacy guarantee can be stated" in text
    assert "The run wrote no model.json" in text


def test_local_models_on_their_own_test_images_are_told_from_those_on_all(tmp_path):
    baselines = {
        "local": {"alder": {"auroc": 0.71}},
        "local_own_test": {"alder": {"auroc": 0.95}},
        "pooled": None,
    }
    run = read_run(fabricate(tmp_path / "run", ["alder"], baselines=baselines))
    assert run.summary.local == {"alder": {"auroc": 0.95}}
    assert run.summary.local_everywhere == {"alder": {"auroc": 0.71}}
    text = " ".join(findings(run))
    assert "at 0 of 1 site; the mean difference is −0.050" in text
    assert "reach 0.710 on average" in text


@given(st.text())
def test_cleaned_text_obeys_no_terminal_and_can_be_encoded(text):
    cleaned = clean_text(text)
    assert cleaned.isprintable() or "\ufffd" in cleaned
    assert not set(cleaned) & {"\x1b", "\n", "\r", "\u202e"}
    assert len(cleaned) <= 300
    cleaned.encode("utf-8")


# --- figures in words


@given(st.floats(min_value=0, max_value=1e6))
def test_epsilon_is_never_rounded_down(epsilon):
    shown = Decimal(epsilon_text(epsilon))
    assert Decimal(epsilon) - Decimal("1e-8") <= shown < Decimal(epsilon) + Decimal("0.0101")


@pytest.mark.parametrize(
    ("epsilon", "shown"), [(7.9, "7.90"), (8.0, "8.00"), (7.9 - 0.1, "7.80"), (7.991, "8.00")]
)
def test_epsilon_has_two_decimals(epsilon, shown):
    assert epsilon_text(epsilon) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (0.0004, "< 0.1 s"), (0.05, "0.1 s"), (59.94, "59.9 s"),
     (59.96, "1 min 00 s"), (187, "3 min 07 s"),
     (3599.9, "1 h 00 min"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations(seconds, shown):
    assert seconds_text(seconds) == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "0%"), (0.0001, "< 1%"), (0.006, "1%"), (0.106, "11%"), (1, "100%")]
)
def test_shares(share, shown):
    assert share_text(share) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (12_345_678, "12.3 MB")],
)
def test_sizes(number, shown):
    assert bytes_text(number) == shown


# --- plots


def test_plots_are_png_files_with_every_site_in_its_colour(tmp_path):
    run = read_run(fabricate(tmp_path / "run"))
    paths = write_plots(run, tmp_path / "run" / "plots")
    assert [path.name for path in paths] == [
        "metric.png",
        "epsilon.png",
        "seconds.png",
        "sites.png",
    ]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) >= 400
    assert colours((tmp_path / "run/plots/metric.png").read_bytes()) >= SITE_COLOURS
    # A site that the run does not have leaves no colour behind: the assertion above can fail.
    two = read_run(fabricate(tmp_path / "two", NAMES[:2]))
    assert (0x00, 0x9E, 0x73) not in colours(metric_plot(two))


def test_sites_that_spent_the_same_are_all_seen(tmp_path):
    image = epsilon_plot(read_run(fabricate(tmp_path / "run")))
    decoded = Image.open(io.BytesIO(image)).convert("RGB")
    above_legend = decoded.crop((0, 0, decoded.width, int(decoded.height * 0.75)))
    shown = {colour for _, colour in above_legend.getcolors(maxcolors=2**24)}
    assert shown >= SITE_COLOURS  # each site has the same curve


def test_baselines_and_target_change_the_plots(tmp_path):
    run = read_run(fabricate(tmp_path / "run"))
    bare = read_run(fabricate(tmp_path / "bare", baselines={}, privacy={}))
    assert metric_plot(run) != metric_plot(bare)
    assert epsilon_plot(run) != epsilon_plot(bare)
    assert seconds_plot(run) == seconds_plot(bare)
    orange = (0xE6, 0x9F, 0x00)
    assert orange in colours(sites_plot(run))
    assert orange not in colours(sites_plot(bare))


def test_what_was_not_measured_is_not_drawn(tmp_path):
    folder = fabricate(tmp_path / "run", private=False, metrics={}, sites={}, baselines={})
    record = {"round": 1, "metrics": {"auroc": None}, "sites": {"alder": {"status": "ok"}}}
    (folder / "rounds.jsonl").write_text(json.dumps(record))
    run = read_run(folder)
    assert write_plots(run, tmp_path / "plots") == []
    text = page_of(folder).text
    assert "No round was recorded that could be drawn" in text
    assert "How good the model is was not measured" in text


def test_gaps_and_single_rounds_are_drawn(tmp_path):
    folder = fabricate(tmp_path / "run", ["alder"], rounds=1)
    assert len(write_plots(read_run(folder), tmp_path / "plots")) == 4
    records = [round_line(number, NAMES, private=True) for number in (1, 2, 5)]
    records[1]["metrics"] = {}
    records[1]["sites"] = {"alder": {"status": "failed"}}
    records[2]["seconds"] = {"train": 3.0}
    (folder / "rounds.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert len(write_plots(read_run(folder), tmp_path / "plots")) == 4


def test_fifty_sites_share_one_colour_and_leave_room_for_the_plot(tmp_path):
    names = [f"hospital-{number:02d}" for number in range(50)]
    run = read_run(fabricate(tmp_path / "fifty", names))
    few = read_run(fabricate(tmp_path / "few"))
    image, usual = metric_plot(run), metric_plot(few)
    assert not colours(image) & SITE_COLOURS
    # The axis line is the tallest vertical run of ink: its length is the height of the plot.
    assert axis_height(image) >= 0.9 * axis_height(usual)
    with Image.open(io.BytesIO(sites_plot(run))) as bars:
        assert bars.height / 50 > 20  # pixels a site


def axis_height(image: bytes) -> int:
    decoded = Image.open(io.BytesIO(image)).convert("L").point(lambda value: 255 * (value < 60))
    columns = decoded.resize((decoded.width, 1), Image.Resampling.BOX).tobytes()
    return max(columns)


def test_names_that_look_like_formulas_or_lack_glyphs_are_drawn(tmp_path):
    names = ["_hidden", "$\\frac{1}$", "病院", "x" * 500, "a$b$c", "${"]
    run = read_run(fabricate(tmp_path / "run", names))
    assert len(write_plots(run, tmp_path / "plots")) == 4


def test_drawing_in_threads_gives_the_same_pictures(tmp_path):
    run = read_run(fabricate(tmp_path / "run"))
    jobs = [metric_plot, epsilon_plot, seconds_plot, sites_plot] * 2
    alone = [draw(run) for draw in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda draw: draw(run), jobs))
    assert together == alone


def test_dark_plots_have_dark_paper(tmp_path):
    run = read_run(fabricate(tmp_path / "run"))
    for theme, paper in ((LIGHT, (255, 255, 255)), (DARK, (0x17, 0x1B, 0x21))):
        with Image.open(io.BytesIO(metric_plot(run, theme))) as image:
            assert image.convert("RGB").getpixel((0, 0)) == paper


# --- the page


def test_page_asks_for_nothing_from_outside(tmp_path):
    folder = fabricate(tmp_path / "run")
    source = write_report(folder).read_text(encoding="utf-8")
    page = Page(source)
    without_plots = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", source)
    assert not re.search(r"https?:|//|@import|url\(", without_plots)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "a", "base"}
    for _, attributes in page.tags:
        for attribute in ("src", "srcset"):
            if attribute in attributes:
                assert attributes[attribute].startswith("data:image/png;base64,")
        assert "href" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    assert any("default-src 'none'" in str(meta.get("content")) for meta in page.named("meta"))
    assert str(tmp_path) not in source
    assert [path.name for path in folder.glob("report*")] == ["report.html"]


def test_page_can_be_read_aloud(tmp_path):
    page = page_of(fabricate(tmp_path / "run"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(cell.get("scope") in {"col", "row"} for cell in page.named("th"))
    assert len(page.named("caption")) == len(page.named("table")) >= 5
    assert len(page.named("img")) == 4
    assert all(len(str(image["alt"])) > 20 for image in page.named("img"))
    assert page.named("html") == [{"lang": "en"}]


@pytest.mark.usefixtures("no_plots")
def test_rows_have_as_many_cells_as_their_header(tmp_path):
    page = page_of(fabricate(tmp_path / "run"))
    width = 0
    for row in page.rows:
        if row[0] in {"Site", "Test images of", "Round", "Phase", "Way"}:
            width = len(row)
        assert len(row) == width, row


@pytest.mark.usefixtures("no_plots")
def test_every_number_of_the_summary_is_on_the_page(tmp_path):
    folder = fabricate(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    text = page_of(folder).text
    expected = ["5", "3 min 07 s", "175,218", "0.0021", "7,654,321", "3,456,789", "epsilon 8"]
    models = [summary["metrics"], summary["baselines"]["pooled"]]
    models += summary["baselines"]["local"].values()
    for site in summary["sites"].values():
        models.append(site["metrics"])
        expected += [f"{site[part]:,}" for part in ("train", "val", "test")]
        expected += [f"{reason}: {count}" for reason, count in site["excluded"].items()]
        expected += [f"{site['epsilon']:.2f}", "1.5e-5"]
    expected += [f"{value:.3f}" for model in models for value in model.values()]
    missing = [number for number in expected if number not in text]
    assert missing == []
    assert "0.999" not in text  # a number that is not in the summary


@pytest.mark.usefixtures("no_plots")
def test_sites_table_has_each_site_and_the_sums(tmp_path):
    rows = page_of(fabricate(tmp_path / "run")).rows
    cells = {row[0]: row[1:] for row in rows if len(row) == 9}
    reasons = "no consent: 3, unreadable: 17"
    assert cells["birch"] == ["1,141", "221", "341", reasons, "0.901", "0.822", "7.49", "1.5e-5"]
    assert cells["All sites"][:5] == ["3,423", "663", "1,023", "60", "0.912"]
    assert cells["All sites"][5] == "pooled 0.932"


def test_text_from_sites_is_shown_not_obeyed(tmp_path):
    names = [HOSTILE, "{{ 7 * 7 }}", "\x1b[2J\u202egnp", "' onload='x"]
    folder = fabricate(tmp_path / "run", names, task=HOSTILE, refused={HOSTILE: "<img src=x>"})
    record = round_line(6, names, private=True)
    record["sites"][HOSTILE] |= {"status": "failed", "reason": "<iframe src='https:evil'>"}
    record["seconds"]["<u>"] = 1.0
    record["metrics"]["<i>"] = 0.5
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    (folder / "config.yaml").write_text('"</pre><script>x</script>": "\\e[2J \\u202e"\n')
    source = write_report(folder).read_text(encoding="utf-8")
    page = Page(source)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "u", "i"}
    assert all("onload" not in attributes for _, attributes in page.tags)
    assert HOSTILE in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "<iframe src='https:evil'>" in page.text
    assert "</pre><script>x</script>" in page.text
    assert "\x1b" not in source
    assert "\u202e" not in source


@pytest.mark.usefixtures("no_plots")
def test_counts_that_a_site_keeps_are_told_apart_from_those_not_recorded(tmp_path):
    keeps = {"train": None, "val": None, "test": None, "excluded": {}}
    folder = fabricate(tmp_path / "run", ["alder", "birch", "cedar"])
    content = json.loads((folder / "summary.json").read_text())
    content["sites"]["alder"] |= keeps
    for name in keeps:
        del content["sites"]["birch"][name]
    (folder / "summary.json").write_text(json.dumps(content))
    alder, birch, cedar, *_ = sites_table(read_run(folder)).rows
    assert list(alder[1:5]) == ["kept", "kept", "kept", "kept by the site"]
    assert "kept" not in " ".join(birch)
    assert cedar[1][0].isdigit()
    assert "kept by the site" in page_of(folder).text


@pytest.mark.parametrize(
    ("mode", "words"),
    [("sealed", "sealed for the server"), ("plain", "neither signed nor sealed"), (None, None)],
)
def test_single_updates_are_said_to_be_sealed_or_not(tmp_path, mode, words):
    transport = {"secure_aggregation": False} | ({"mode": mode} if mode else {})
    statement = aggregation_statement(read_run(fabricate(tmp_path / "run", transport=transport)))
    text = " ".join(statement.sentences)
    assert statement.level == "warning"
    assert (words in text) if words else ("transport=" not in text)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    "settings",
    [
        "data:\n  root: /srv/secret\nsite:\n  state: /srv/secret\n"
        "link: {credentials: /srv/secret}\nseed: 11235\n",
        "{'data': {root: /srv/secret},\n\"site\": [/srv/secret], seed: 11235}\n",
        "data: &here\n  root: /srv/secret\n? site\n: - *here\n- link\n",  # is no YAML
        "seed: 11235\ndata:\n  root: >-\n\n    /srv/secret\n",
        "tracking:\n  folder: /srv/secret\nresume: /srv/secret\nseed: 11235\n",
    ],
)
def test_settings_of_one_machine_are_not_on_the_page(tmp_path, settings):
    folder = fabricate(tmp_path / "run")
    (folder / "config.yaml").write_text(settings)
    text = page_of(folder).text
    assert "/srv/secret" not in text
    assert ("seed: 11235" in text) is ("seed" in settings)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("content", [b"a: [", b"\xff", b"just text", b"[" * 100_000, b"a: \x1b"])
def test_settings_that_cannot_be_read_are_left_out(tmp_path, content):
    folder = fabricate(tmp_path / "run")
    (folder / "config.yaml").write_bytes(content)
    assert "no config.yaml that can be read" in page_of(folder).text


@pytest.mark.usefixtures("no_plots")
def test_lone_surrogate_in_a_name_can_be_written(tmp_path):
    folder = fabricate(tmp_path / "run")
    path = folder / "summary.json"
    path.write_text(path.read_text().replace("alder", "\\ud800alder"))
    assert "\ufffdalder" in page_of(folder).text


def test_paragraph_says_what_the_numbers_say(tmp_path):
    text = " ".join(findings(read_run(fabricate(tmp_path / "run"))))
    assert "3 sites trained one model (classification) in 5 rounds." in text
    assert "On the 1,023 test images of all sites together" in text
    assert "AUROC 0.912 (exact to ± 0.0021)" in text
    assert "from 0.900 (alder) to 0.902 (cedar)" in text
    # global minus local: 0.080, 0.079, 0.078
    assert "at 3 of 3 sites; the mean difference is +0.079" in text
    assert "0.932; the global model differs from it by −0.020." in text
    assert "not measured" in text  # chance


def test_paragraph_admits_what_was_not_measured(tmp_path):
    folder = fabricate(tmp_path / "run", metrics={}, baselines={"local": {}, "pooled": None})
    text = " ".join(findings(read_run(folder)))
    assert "AUROC of the global model on test images was not measured" in text
    assert "Models that the sites trained alone were not measured" in text
    assert "A model trained on all images in one place was not measured" in text


def test_lower_calibration_error_counts_as_better(tmp_path):
    sites = {
        name: {"metrics": {"ece": ours}} for name, ours in (("a", 0.1), ("b", 0.3), ("c", 0.2))
    }
    folder = fabricate(
        tmp_path / "run",
        metrics={"ece": 0.2},
        sites=sites,
        baselines={"local": {name: {"ece": 0.25} for name in sites}},
    )
    (folder / "rounds.jsonl").unlink()
    assert "at 2 of 3 sites" in " ".join(findings(read_run(folder)))


# --- guarantees


def privacy_of(tmp_path: Path, **privacy: object):
    usual = {"preset": "medium", "unit": "image", "target_epsilon": 8.0, "noise": "secure"}
    return privacy_statement(read_run(fabricate(tmp_path / "run", privacy=usual | privacy)))


def test_guarantee_names_unit_epsilon_and_delta(tmp_path):
    statement = privacy_of(tmp_path)
    assert statement.level == "good"
    assert "per image: epsilon at most 7.50 at delta 1.5e-5" in statement.title
    assert any("a patient with several training images" in s for s in statement.sentences)
    assert any("target was epsilon 8" in s for s in statement.sentences)


def test_guarantee_per_patient_has_no_warning_about_several_images(tmp_path):
    statement = privacy_of(tmp_path, unit="patient")
    assert "per patient" in statement.title
    assert not any("several training images" in s for s in statement.sentences)


def test_passed_target_is_a_warning_that_names_the_sites(tmp_path):
    statement = privacy_of(tmp_path, target_epsilon=7.495)
    assert statement.level == "warning"
    assert any(s.endswith("spent at: alder.") for s in statement.sentences)


def test_site_without_epsilon_is_a_warning(tmp_path):
    folder = fabricate(tmp_path / "run")
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["sites"]["birch"]["epsilon"] = None
    path.write_text(json.dumps(summary))
    statement = privacy_statement(read_run(folder))
    assert statement.level == "warning"
    assert any("No epsilon was recorded for: birch." in s for s in statement.sentences)


@pytest.mark.usefixtures("no_plots")
def test_seeded_noise_is_void_on_a_red_banner_and_at_each_epsilon(tmp_path):
    folder = fabricate(
        tmp_path / "run", privacy={"preset": "medium", "noise": "void (seeded noise)"}
    )
    page = page_of(folder)
    banners = [a for a in page.named("div") if "void" in str(a.get("class")).split()]
    assert len(banners) == 2  # at the top and under "Privacy"
    assert "7.50 (void)" in page.text
    assert "Differential privacy holds" not in page.text
    honest = page_of(fabricate(tmp_path / "honest"))
    assert not [a for a in honest.named("div") if "void" in str(a.get("class")).split()]


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("privacy", "title"),
    [
        ({"preset": "off", "noise": "off"}, "Differential privacy was off"),
        ({}, "No privacy guarantee can be stated"),
        ({"preset": "medium", "noise": "something new"}, "No privacy guarantee can be stated"),
    ],
)
def test_without_secure_noise_nothing_is_promised(tmp_path, privacy, title):
    run = read_run(fabricate(tmp_path / "run", privacy=privacy))
    statement = privacy_statement(run)
    assert statement.level == "warning"
    assert title in statement.title
    assert "Differential privacy holds" not in render_report(run)


def test_noise_without_an_epsilon_promises_nothing(tmp_path):
    folder = fabricate(tmp_path / "run", private=False, privacy={"noise": "secure"})
    assert "No privacy guarantee" in privacy_statement(read_run(folder)).title


@pytest.mark.parametrize(
    ("names", "secure", "level", "words"),
    [
        (NAMES, True, "good", "the server saw sums only"),
        (NAMES[:2], True, "warning", "hid little"),
        (NAMES, False, "warning", "the server saw each site's update"),
        (NAMES, None, "warning", "not recorded"),
    ],
)
def test_what_the_server_could_see(tmp_path, names, secure, level, words):
    folder = fabricate(tmp_path / "run", names, transport={"secure_aggregation": secure})
    statement = aggregation_statement(read_run(folder))
    assert statement.level == level
    assert words in statement.title


@pytest.mark.usefixtures("no_plots")
def test_failures_are_listed_by_round_and_unsampled_sites_are_not(tmp_path):
    folder = fabricate(tmp_path / "run", refused={"dogwood": "task is not allowed"})
    record = round_line(6, NAMES, private=True)
    record["participants"] = ["cedar"]
    record["sites"]["alder"] = {"status": "refused", "reason": "budget"}
    record["sites"]["birch"] = {"status": "not sampled", "metrics": {"auroc": 0.8}}
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    page = page_of(folder)
    assert ["6", "alder", "refused", "budget"] in page.rows
    assert ["dogwood", "task is not allowed"] in page.rows
    assert not any(row[:2] == ["6", "birch"] for row in page.rows)
    assert "1 / 2" in next(row for row in page.rows if row[0] == "6" and len(row) > 4)
    assert aggregation_statement(read_run(folder)).level == "warning"  # a sum of one


@pytest.mark.usefixtures("no_plots")
def test_time_outside_rounds_is_shown_as_other(tmp_path):
    rows = {row[0]: row[1:] for row in page_of(fabricate(tmp_path / "run")).rows}
    assert rows["train"] == ["20.0 s", "11%"]  # 5 x 4.0 of 187 s
    other = next(cells for name, cells in rows.items() if name.startswith("other"))
    assert other[0] == "2 min 38 s"  # 187 - 5 x 5.75 = 158.25
    assert rows["Whole run"][0] == "3 min 07 s"


@pytest.mark.usefixtures("no_plots")
def test_longest_phase_comes_first_and_losses_are_told_apart(tmp_path):
    folder = fabricate(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        line["seconds"] = dict(sorted(line["seconds"].items()))
        line["metrics"]["loss"] = 0.3
    (folder / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(read_run(folder).seconds_by_phase) == [
        "train", "evaluate", "aggregate", "checkpoint",
    ]  # fmt: skip
    header = next(row for row in page_of(folder).rows if row[0] == "Round")
    assert len(set(header)) == len(header)
    assert {"Loss", "Training loss"} <= set(header)


def test_comparison_says_where_a_site_was_not_measured(tmp_path):
    baselines = {"local": {"alder": {"auroc": 0.5}, "birch": {"auroc": 0.99}}}
    text = " ".join(findings(read_run(fabricate(tmp_path / "run", baselines=baselines))))
    assert "at 1 of 2 sites where both were measured;" in text


def test_the_guarantees_table_names_who_is_held_off_by_what(tmp_path):
    entries = [
        {"adversary": "server", "epsilon": None, "because": "it adds the noise <itself>"},
        {"adversary": "other sites", "epsilon": 7.96, "because": "they see the model only"},
        {"because": "no adversary named"},
        "damaged",
    ]
    privacy = {"unit": "patient", "noise": "secure", "guarantees": entries}
    transport = {"secure_aggregation": False}
    text = page_of(fabricate(tmp_path / "run", privacy=privacy, transport=transport)).text
    assert "Which epsilon, per patient, holds against whom" in text
    assert "it adds the noise <itself>" in text  # as text: it was escaped
    assert "at most 7.96" in text
    assert "it does not hold against: server" in text
    assert "no adversary named" not in text
    assert "The sites trust whoever runs the server" in text
    entries[0]["epsilon"] = 7.5
    again = fabricate(tmp_path / "again", privacy=privacy, transport=transport)
    protected = page_of(again).text
    assert "the epsilon above holds against the server too" in protected
