"""``fedmed audit verify`` and ``show``: what they print, and with which code they end."""

import io
import json
import subprocess
import sys

import pytest
from audited_run import AuditedRun, copy_of, digest, usual_run
from rich.console import Console

from fedmed.commands.audit import audit_command
from fedmed.errors import ConfigurationError, ProtocolError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = usual_run(folder / "audit")
    (folder / "root.crt").write_bytes(run.consortium.root_pem)
    return folder


def audit(*arguments, width=80):
    console = Console(file=io.StringIO(), width=width)
    code = audit_command([str(argument) for argument in arguments], console)
    return code, console.file.getvalue()


def test_verify_says_what_is_proven_and_what_is_not(bundle):
    state = bundle / "north.witness.json"
    code, text = audit(
        "verify", bundle, "--root", bundle / "root.crt", "--site", "north", "--from", state
    )
    assert code == 0
    proven, _, unproven = text.partition("Not proven:")
    assert proven.startswith("Proven:")
    for words in (
        "server 'hub' of 'lung consortium'",
        "8 leaves, each under a head that the server signed",
        "4 rounds of training and 1 evaluation with secure aggregation: 19 masked inputs and 19",
        f"The last model is {digest('model 3')}",
        "4 sites signed an epsilon",
        "none ever fell, and the largest is 1.25",
        "went back to an earlier model 1 time and gave up 1 attempt",
        "Sites cosigned 20 times, last the head of 7 leaves (east, north, south, west)",
        "Site 'north': asked in 5 rounds, its signed message is in 5 of them",
        "It continues the earlier witness state: 1 head compared, the newest of 7 leaves",
    ):
        assert words in proven
    for words in (
        "The newest 1 leaf: no site has cosigned",
        "sites' data were good",
        "did not compute honestly",
        "each site's own statement",
        "dropped no site's message",
        "2027-01-15 08:0",
    ):
        assert words in unproven
    assert "--from" not in unproven


def test_verify_asks_for_a_comparison_when_there_is_none(bundle):
    _, text = audit("verify", bundle, "--root", bundle / "root.crt")
    assert "shown another history after the last cosigned head" in text


def test_verify_for_programs(bundle):
    code, text = audit("verify", bundle / "audit", "--root", bundle / "root.crt", "--json")
    content = json.loads(text)
    assert code == 0
    assert content["report"]["sites"]["west"]["delivered"] == 4
    assert content["signatures"] == 67
    assert len(content["proven"]) > 4
    assert len(content["not_proven"]) > 4


def test_verify_ends_with_6_where_something_does_not_hold(bundle, tmp_path):
    spoilt = copy_of(bundle / "audit", tmp_path / "spoilt")
    path = spoilt / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b"too few sites", b"too few SITES"))
    command = [
        sys.executable,
        "-c",
        "import sys; from fedmed.cli import main; sys.exit(main(sys.argv[1:]))",
        *("audit", "verify", str(spoilt), "--root", str(bundle / "root.crt")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 6
    assert "log.jsonl, line 6, round 4 (train): The server signed another leaf" in done.stderr
    assert "Proven" not in done.stdout


def test_verify_names_a_file_that_is_not_there(bundle, tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot read root.crt"):
        audit("verify", bundle, "--root", tmp_path / "root.crt")


def test_verify_needs_no_torch(bundle):
    script = (
        "import sys; from fedmed.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, "audit", "verify", str(bundle), "--root"]
    done = subprocess.run([*command, str(bundle / "root.crt")], check=False, timeout=60)
    assert done.returncode == 0


def test_open_rounds_are_called_by_their_name(tmp_path):
    run = AuditedRun(tmp_path / "audit", mode="sealed")
    run.start()
    run.open_round(1)
    (tmp_path / "root.crt").write_bytes(run.consortium.root_pem)
    _, text = audit("verify", tmp_path, "--root", tmp_path / "root.crt")
    assert "1 round (evaluations with them) WITHOUT secure aggregation: 4 updates" in text
    assert "no site has cosigned" in text
    _, text = audit("show", tmp_path)
    assert "round 1 (unmasked)" in text


def test_show_lists_the_leaves(bundle):
    code, text = audit("show", bundle)
    assert code == 0
    assert "Not checked" in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for words in ("start of the run", "evaluation 3", "round 4, given up", "resumed after round 2"):
        assert words in text
    line = next(line for line in lines if " round 2 " in line)
    # Four sites asked, three in the sum, three confirmations.
    assert line.split()[-4:] == ["4", "3", "3", digest("model 2")[:8]]


def test_show_tells_who_took_part_in_a_round(bundle):
    _, text = audit("show", bundle / "audit", "--round", "2")
    assert f"model  {digest('model 1')}" in text
    west = next(line for line in text.splitlines() if line.strip().startswith("west"))
    assert "dropped out" in west
    east = next(line for line in text.splitlines() if line.strip().startswith("east"))
    assert "in the sum, confirmed" in east
    assert east.rstrip().endswith("0.5")
    _, text = audit("show", bundle, "--round", "4")
    assert "reason: too few sites" in text
    with pytest.raises(ConfigurationError, match="no round 9"):
        audit("show", bundle, "--round", "9")


def test_show_names_a_damaged_line(bundle, tmp_path):
    spoilt = copy_of(bundle / "audit", tmp_path / "spoilt")
    with (spoilt / "log.jsonl").open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(ProtocolError, match=r"log.jsonl, line 9: .* no type"):
        audit("show", spoilt)


@pytest.mark.parametrize("words", [[], ["unheard-of"], ["verify", "--unknown"]])
def test_wrong_words_end_with_2(words):
    with pytest.raises(SystemExit) as ended:
        audit(*words)
    assert ended.value.code == 2


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        audit("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("privacy", "verify", "show"))
