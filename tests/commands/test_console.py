from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from fedmed.commands.console import MAX_SITE_BARS, ConsoleObserver, render_summary_table

NAMES = ["alder", "birch", "cedar"]


class EncodedText(io.StringIO):
    """A stream that takes only what its encoding has, like a terminal's."""

    encoding = "ascii"

    def write(self, text):
        text.encode(self.encoding)
        return super().write(text)


def pipe(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def terminal() -> Console:
    return Console(
        file=io.StringIO(), width=80, force_terminal=True, force_interactive=True, color_system=None
    )


def written(console: Console) -> str:
    return console.file.getvalue()


def record(number: int, names: list[str] = NAMES, **changes: object) -> dict[str, object]:
    return {
        "round": number,
        "metrics": {"accuracy": 0.8, "auroc": 0.91, "ece": 0.05},
        "loss": 0.5,
        "participants": names,
        "sites": {
            name: {"status": "ok", "epsilon": 1.2 + index / 100} for index, name in enumerate(names)
        },
        "seconds": {"train": 4.0, "evaluate": 0.5},
    } | changes


def summary(names: list[str] = NAMES, **changes: object) -> dict[str, object]:
    return {
        "task": "classification",
        "state": "completed",
        "rounds": 2,
        "seconds": 9.0,
        "metrics": {"accuracy": 0.8512, "auroc": 0.9123},
        "sites": {
            name: {
                "train": 140 + index,
                "val": 20,
                "test": 40,
                "excluded": {"no consent": 3},
                "epsilon": 7.9,
                "metrics": {"auroc": 0.9 + index / 1000, "accuracy": 0.8},
            }
            for index, name in enumerate(names)
        },
        "baselines": {"local": {"alder": {"auroc": 0.8234}}, "pooled": {"auroc": 0.9345}},
        "privacy": {"noise": "secure"},
    } | changes


def play(console: Console, names: list[str] = NAMES, rounds: int = 2) -> str:
    with ConsoleObserver(console) as observer:
        for name in names:
            observer.site_joined(name, {"train": 140, "val": 20, "test": 40}, {"no consent": 3})
        observer.run_started("2026-11-23/20-38-11", rounds, names)
        for number in range(1, rounds + 1):
            observer.round_started(number, names)
            for name in names:
                observer.site_progress(name, 0.5)
                observer.site_replied(name, "ok", None)
            observer.round_finished(record(number, names))
        observer.run_finished(summary(names))
    return written(console)


def table_lines(console: Console, content: dict[str, object]) -> list[str]:
    console.print(render_summary_table(content))
    return [line.rstrip() for line in written(console).splitlines()]


def test_pipe_gets_one_plain_line_a_round():
    output = play(pipe())
    assert "\x1b" not in output
    assert "\r" not in output
    rounds = [line for line in output.splitlines() if line.startswith("Round ")]
    assert rounds == [
        f"Round {number}/2  AUROC 0.910  Accuracy 0.800  3/3 sites  4.5 s  epsilon 1.22"
        for number in (1, 2)
    ]
    assert "Site alder: 140 train, 20 val, 40 test; left out: no consent 3" in output
    assert "Run completed: 2 rounds in 9.0 s" in output


def test_output_reads_in_eighty_columns():
    names = ["alder", "hospital-with-a-very-long-name-in-the-north", "cedar"]
    lines = play(pipe(), names).splitlines()
    # Long names make long "Site" lines, which a log keeps whole; all else fits.
    long = [line for line in lines if len(line) > 80 and not line.startswith("Site ")]
    assert long == []


def test_line_of_a_log_is_not_folded_on_a_narrow_console():
    output = play(pipe(width=30))
    assert "3/3 sites  4.5 s  epsilon 1.22\n" in output


def test_terminal_gets_bars_and_gets_its_cursor_back():
    console = terminal()
    output = play(console)
    assert "\x1b[?25l" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    assert re.search(r"^\r?rounds .* 50%", plain, re.MULTILINE)
    assert re.search(r"^\r?birch .* 0%", plain, re.MULTILINE)
    assert "global model" in plain


def test_cursor_comes_back_after_an_error():
    console = terminal()
    observer = ConsoleObserver(console)
    observer.run_started("run", 2, NAMES)
    with pytest.raises(RuntimeError), observer:
        raise RuntimeError
    shown = written(console).rindex("\x1b[?25h")
    assert shown > written(console).rindex("\x1b[?25l")
    assert "\x1b[2K" in written(console)[shown:]  # and the bars are wiped


@pytest.mark.parametrize(("count", "bars"), [(MAX_SITE_BARS, True), (MAX_SITE_BARS + 1, False)])
def test_many_sites_share_one_bar(count, bars):
    names = [f"site-{number:02d}" for number in range(count)]
    console = terminal()
    with ConsoleObserver(console) as observer:
        observer.run_started("run", 1, names)
        observer.round_started(1, names)
    assert (f"{names[-1]} " in written(console)) is bars
    assert (f"{count} sites  " in written(console)) is not bars


def test_round_that_was_not_evaluated_shows_its_loss():
    console = pipe()
    ConsoleObserver(console).round_finished(record(7, metrics={}, loss=0.25, seconds={}))
    assert written(console) == "Round 7  loss 0.250  3/3 sites  epsilon 1.22\n"


def test_refusals_and_failures_have_a_line_with_the_reason():
    console = pipe()
    observer = ConsoleObserver(console)
    observer.site_refused("dogwood", "task is not allowed")
    observer.run_started("run", 1, NAMES)
    observer.round_started(1, NAMES)
    observer.site_replied("alder", "ok", None)
    observer.site_replied("birch", "late", None)
    observer.site_replied("cedar", "refused", "epsilon would pass the limit")
    assert written(console).splitlines() == [
        "Site dogwood refused: task is not allowed",
        "Run run: 1 round, 3 sites",
        "Round 1: site birch late",
        "Round 1: site cedar refused: epsilon would pass the limit",
    ]


@pytest.mark.parametrize("make", [pipe, terminal])
def test_text_from_sites_is_not_obeyed(make):
    console = make()
    name = "\x1b]0;title\x07[bold]x[/bold][/]\nRound 9/9"
    with ConsoleObserver(console) as observer:
        observer.site_refused(name, "\x1b[2J\x9b2J\rgone")
        observer.run_started(name, 1, [name])
        observer.round_started(1, [name])
        observer.site_replied(name, "failed\x1b[2J", "[red]boo[/red]")
        observer.round_finished(record(1, [name]))
        observer.run_finished(summary([name]))
    output = written(console)
    assert "\x1b[2J" not in output
    assert "\x1b]0" not in output
    assert "\x9b" not in output
    assert "\nRound 9/9" not in output
    assert "[red]boo[/red]" in output
    assert "[bold]" in output


def test_terminal_without_unicode_is_no_crash():
    console = Console(file=EncodedText(), width=80)
    output = play(console, ["höglund", "病院"])
    assert "h?glund" in output
    with pytest.raises(UnicodeEncodeError):  # the stream does refuse what it has not
        console.file.write("ö")


@pytest.mark.parametrize("fraction", [float("nan"), -1.0, 2.0, float("inf")])
def test_impossible_progress_is_no_error(fraction):
    with ConsoleObserver(terminal()) as observer:
        observer.run_started("run", 1, NAMES)
        observer.round_started(1, NAMES)
        observer.site_progress("alder", fraction)
        observer.site_progress("nobody", 0.5)
        observer.round_finished({"metrics": {}})


@pytest.mark.parametrize("make", [pipe, terminal])
def test_calls_may_come_from_many_threads(make):
    console = make()
    names = [f"site-{number}" for number in range(10)]

    def work(name: str) -> None:
        for step in range(20):
            observer.site_progress(name, step / 20)
        observer.site_replied(name, "late", f"reason of {name}")

    with ConsoleObserver(console) as observer, ThreadPoolExecutor(10) as pool:
        observer.run_started("run", 3, names)
        for number in (1, 2, 3):
            observer.round_started(number, names)
            list(pool.map(work, names))
            observer.round_finished(record(number, names))
    for name in names:
        for number in (1, 2, 3):
            line = f"Round {number}: site {name} late: reason of {name}"
            assert written(console).count(line) == 1


def test_table_has_every_site_then_pooled_then_global():
    lines = table_lines(pipe(), summary())
    rows = [line.split() for line in lines if line and "─" not in line]
    header = ["site", "train/val/test", "left", "out", "AUROC", "Accuracy", "alone", "epsilon"]
    assert rows[0] == header
    assert rows[1] == ["alder", "140/20/40", "3", "0.900", "0.800", "0.823", "7.90"]
    assert rows[2] == ["birch", "141/20/40", "3", "0.901", "0.800", "-", "7.90"]
    assert rows[4] == ["pooled", "images", "-", "-", "0.934", "-", "-", "-"]
    assert rows[5] == ["global", "model", "423/60/120", "9", "0.912", "0.851", "-", "7.90"]
    assert " ".join(rows[6]) == "Global model: AUROC 0.912, Accuracy 0.851"


def test_models_trained_alone_are_compared_on_the_same_images():
    baselines = {
        "local": {"alder": {"auroc": 0.7}, "birch": {"auroc": 0.6}},
        "local_own_test": {"alder": {"auroc": 0.8234}},
    }
    lines = table_lines(pipe(), summary(baselines=baselines))
    assert next(line for line in lines if line.startswith("alder")).split()[-2] == "0.823"
    assert lines[-1] == "Trained alone, mean on the same images: AUROC 0.650"


def test_table_fits_eighty_columns_and_cuts_no_figure():
    names = ["n" * 60, "alder"]
    content = summary(names, privacy={"noise": "void (seeded noise)"})
    content["sites"]["alder"] |= {"train": 123456, "val": 12345, "test": 23456}
    content["metrics"] = {"auroc": 0.9123, "sensitivity": 0.8}
    lines = table_lines(pipe(), content)
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("alder"))
    assert "123456/12345/23456" in row
    assert row.endswith("7.90 void")


def test_table_says_which_counts_a_site_keeps():
    content = summary()
    content["sites"]["alder"] |= {"train": None, "val": None, "test": None, "excluded": {}}
    rows = [line.split() for line in table_lines(pipe(), content) if "─" not in line]
    assert rows[1][:5] == ["alder", "kept", "by", "site", "-"]
    assert ["global", "model", "-/-/-"] in [row[:3] for row in rows]


def test_table_of_an_empty_summary_has_dashes():
    rows = [line.split() for line in table_lines(pipe(), {})]
    assert rows[-1] == ["global", "model", "-/-/-", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("noise", "line"),
    [
        (
            "void (seeded noise)",
            "VOID: the noise came from a seed, so there is no privacy guarantee.",
        ),
        ("off", "Differential privacy was off."),
    ],
)
def test_missing_guarantee_is_said_at_the_end(noise, line):
    console = pipe()
    ConsoleObserver(console).run_finished(summary(privacy={"noise": noise}))
    assert written(console).splitlines()[-1] == line
    assert line not in play(pipe())
