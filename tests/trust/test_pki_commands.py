"""``fedmed pki`` as people at two machines use it: only what they send each other is shared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from forged_certificates import consortium, expire_crl
from rich.console import Console

from fedmed.cli import main
from fedmed.commands.pki_status import show_status
from fedmed.errors import ConfigurationError
from fedmed.trust import key_files
from fedmed.trust.credentials import load_credentials
from fedmed.trust.roster import Role

PASSPHRASE = "four random words here"
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDMED_PASSPHRASE_FILE", raising=False)
    monkeypatch.setenv("FEDMED_PASSPHRASE", PASSPHRASE)
    monkeypatch.setenv("COLUMNS", "100")
    # Quick; that 600,000 are written is checked with OpenSSL.
    monkeypatch.setattr(key_files, "ROUNDS", 1000)

    def run(line: str, *, code: int = 0) -> str:
        returned = main(["pki", *line.split()])
        said = capsys.readouterr()
        assert returned == code, said.err
        return said.out if code == 0 else said.out + said.err

    return run


def _fingerprint(text: str, of: str) -> str:
    found = re.search(rf"Fingerprint of the {of}: ((?:[0-9A-F]{{4}}-){{5}}[0-9A-F]{{4}})", text)
    assert found, text
    return found[1]


def _admit(run: Run, name: str, root: str, more: str = "") -> None:
    said = _fingerprint(run(f"enroll {name} --folder {name} {more}"), "request")
    shutil.copy(f"{name}/request.json", f"{name}.request.json")
    run(f"sign {name}.request.json --folder consortium --fingerprint {said}")
    run(f"install consortium/{name}.bundle.json --folder {name} --root-fingerprint {root}")


def _everybody_installs(run: Run, *names: str) -> None:
    for name in names:
        run(f"install consortium/update.bundle.json --folder {name}")


def test_consortium_is_made_and_a_member_put_out(run: Run) -> None:
    root = _fingerprint(run("init --folder consortium --name Gliomas"), "root")
    _admit(run, "server", root, "--role server --host fl.example.org 10.0.0.1")
    for site in ("north", "south"):
        _admit(run, site, root)
    _everybody_installs(run, "server", "north", "south")
    rosters = set()
    for name, role in (("server", Role.server), ("north", Role.site), ("south", Role.site)):
        held = load_credentials(Path(name), PASSPHRASE.encode())
        assert (held.name, held.role) == (name, role)
        rosters.add(held.roster.sha256())
    assert len(rosters) == 1
    run("revoke south --folder consortium")
    _everybody_installs(run, "server", "north")
    assert load_credentials(Path("north"), PASSPHRASE.encode()).roster.names(Role.site) == (
        "north",
    )
    # The update says so at the revoked site as well.
    run("install consortium/update.bundle.json --folder south")
    assert "not in the roster" in run("status --folder south", code=8)
    assert "revoked certificates" in run("status --folder consortium")


def test_keys_are_rotated_without_a_gap(run: Run) -> None:
    root = _fingerprint(run("init --folder consortium --name Gliomas"), "root")
    _admit(run, "north", root)
    before = load_credentials(Path("north"), PASSPHRASE.encode())
    said = _fingerprint(run("rotate --folder north"), "request")
    assert "to be signed" in " ".join(run("status --folder north").split())
    run(f"sign north/next/request.json --folder consortium --fingerprint {said}")
    # Until the answer is installed the present keys are used, and beside it they hold on.
    assert load_credentials(Path("north"), PASSPHRASE.encode()).tls_key.private_numbers() == (
        before.tls_key.private_numbers()
    )
    run("install consortium/north.bundle.json --folder north")
    after = load_credentials(Path("north"), PASSPHRASE.encode())
    assert after.tls_key.private_numbers() != before.tls_key.private_numbers()
    assert not Path("north/next").exists()
    old, new = after.roster.member("north").keys
    assert old.signing_key == before.signer.key.public_key().public_bytes_raw().hex()
    month = timedelta(days=30).total_seconds()
    assert abs(old.not_after - datetime.now(UTC).timestamp() - month) < 60
    assert new.not_after - old.not_after > month
    assert len(after.roster.signing_keys("north", Role.site)) == 2
    in_31_days = datetime.now(UTC) + timedelta(days=31)
    assert len(after.roster.signing_keys("north", Role.site, in_31_days)) == 1


def test_no_private_key_leaves_its_machine(run: Run) -> None:
    """What is sent is searched for the keys in every form that this program could write them."""
    root = _fingerprint(run("init --folder consortium --name Gliomas"), "root")
    _admit(run, "north", root)
    said = _fingerprint(run("rotate --folder north"), "request")
    run(f"sign north/next/request.json --folder consortium --fingerprint {said}")
    held = load_credentials(Path("north"), PASSPHRASE.encode())
    raw = held.signer.key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    number = held.tls_key.private_numbers().private_value.to_bytes(32, "big")
    secrets = [raw, number, raw.hex().encode(), number.hex().encode()]
    for file in Path("north").glob("**/*.key"):
        lines = file.read_bytes().splitlines()[1:-1]
        secrets += [line for line in lines if len(line) == 64]
    leaving = [
        *Path().glob("*.json"),
        *(path for path in Path("consortium").glob("**/*") if path.name != "root.key"),
        *Path("north").glob("**/*.json"),
        *Path("north").glob("**/*.crt"),
    ]
    contents = [path.read_bytes() for path in leaving if path.is_file()]
    assert len(secrets) >= 8
    assert len(contents) >= 8
    assert not [True for text in contents for secret in secrets if secret in text]
    # The search would find one.
    assert any(secret in Path("north/tls.key").read_bytes() for secret in secrets)


def test_fingerprint_of_a_request_is_demanded(run: Run) -> None:
    run("init --folder consortium --name Gliomas")
    run("enroll north --folder north")
    mine = _fingerprint(run("enroll south --folder south"), "request")
    before = sorted(Path("consortium").glob("**/*"))
    said = run(f"sign north/request.json --folder consortium --fingerprint {mine}", code=8)
    assert "is not that of this request" in said
    for wrong in (mine[:-1], ""):
        words = ["sign", "north/request.json", "--folder", "consortium", "--fingerprint", wrong]
        assert main(["pki", *words]) == 8
    assert "nobody can be asked" in run("sign north/request.json --folder consortium", code=2)
    assert sorted(Path("consortium").glob("**/*")) == before


def test_fingerprint_of_the_root_is_demanded_once(run: Run) -> None:
    root = _fingerprint(run("init --folder consortium --name Gliomas"), "root")
    said = _fingerprint(run("enroll north --folder north"), "request")
    run(f"sign north/request.json --folder consortium --fingerprint {said}")
    bundle = "consortium/north.bundle.json"
    run(f"install {bundle} --folder north --root-fingerprint {said}", code=8)
    assert "nobody can be asked" in run(f"install {bundle} --folder north", code=2)
    assert not Path("north/root.crt").exists()
    # Spelt as somebody types it.
    typed = root.replace("-", ":").lower()
    run(f"install {bundle} --folder north --root-fingerprint {typed}")
    run(f"install {bundle} --folder north")


def test_confirmation_at_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init --folder consortium --name Gliomas")
    run("enroll north --folder north")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter(["no", "", "y", "yes", "no", "yes"])
    monkeypatch.setattr(Console, "input", lambda *_given, **_more: next(answers))
    for _ in range(3):
        run("sign north/request.json --folder consortium", code=8)
    run("sign north/request.json --folder consortium")
    run("install consortium/north.bundle.json --folder north", code=8)
    assert not Path("north/root.crt").exists()
    run("install consortium/north.bundle.json --folder north")
    assert next(answers, None) is None


def test_passphrases_are_demanded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init --folder consortium --name Gliomas")
    said = _fingerprint(run("enroll north --folder north"), "request")
    monkeypatch.delenv("FEDMED_PASSPHRASE")
    sign = f"sign north/request.json --folder consortium --fingerprint {said}"
    assert "FEDMED_PASSPHRASE_FILE" in run(sign, code=2)
    run("init --folder other --name Gliomas", code=2)
    run("enroll south --folder south", code=2)
    assert not Path("other").exists()
    assert not Path("south").exists()
    with pytest.raises(SystemExit):
        main(["pki", *["init", "--folder", "other", "--name", "Gliomas", "--no-passphrase"]])
    run("enroll south --folder south --no-passphrase")
    monkeypatch.setenv("FEDMED_PASSPHRASE", "short")
    assert "shorter than 12" in run("init --folder other --name Gliomas", code=2)
    assert "passphrase is wrong" in run(sign, code=2)
    file = Path("words")
    file.write_text(PASSPHRASE + "\n")
    file.chmod(0o644)
    assert "chmod 600 words" in run(f"{sign} --passphrase-file words", code=2)
    file.chmod(0o600)
    run(f"{sign} --passphrase-file words")


def test_nothing_is_written_over(run: Run) -> None:
    run("init --folder consortium --name Gliomas")
    run("enroll north --folder north")
    before = {path: path.read_bytes() for path in Path().glob("*/*") if path.is_file()}
    assert "not written over" in run("init --folder consortium --name Others", code=2)
    assert "not written over" in run("enroll north --folder north", code=2)
    assert "none to rotate" in run("rotate --folder north", code=2)
    assert {path: path.read_bytes() for path in Path().glob("*/*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "North", "x" * 64])
def test_names_that_are_paths_or_odd_are_refused(run: Run, name: str) -> None:
    run(f"enroll {name} --folder keys", code=2)
    assert not Path("keys").exists()


@pytest.mark.parametrize(
    "words",
    [
        "server --role server",
        "north --host fl.example.org",
        "server --role server --host Fl.example.org",
        "server --role server --host a..b",
        "server --role server --host fl.example.org/path",
        "server --role server --host fl.example.org fl.example.org",
        "server --role server --host 2001:0db8::1",
    ],
)
def test_hosts_are_checked(run: Run, words: str) -> None:
    run(f"enroll {words} --folder keys", code=2)
    assert not Path("keys").exists()


def test_update_renews_the_list_alone(run: Run, tmp_path: Path) -> None:
    run("demo trial --sites a b")
    before = load_credentials(tmp_path / "trial/a", None)
    for days, code in ((0, 2), (91, 2), (60, 0)):
        run(f"update --folder trial/consortium --days {days}", code=code)
    run("install trial/consortium/update.bundle.json --folder trial/a")
    after = load_credentials(tmp_path / "trial/a", None)
    assert after.roster.sha256() == before.roster.sha256()
    assert after.crl.next_update_utc is not None
    left = after.crl.next_update_utc - datetime.now(UTC)
    assert timedelta(days=59) < left <= timedelta(days=60)


def test_demo_makes_everything(run: Run) -> None:
    said = run("demo trial --sites a b --hosts localhost 127.0.0.1")
    assert "trials only" in said
    for name in ("server", "a", "b"):
        assert load_credentials(Path("trial") / name, None).name == name
    run("demo trial --sites a b", code=2)
    run("demo other --sites a server", code=2)


def test_status_tells_what_has_expired(run: Run, tmp_path: Path) -> None:
    authority = consortium(tmp_path / "trial")
    site = tmp_path / "trial" / "north"
    console = Console(record=True, width=120)

    def status(folder: Path, days: int) -> tuple[int, str]:
        code = show_status(folder, console, datetime.now(UTC) + timedelta(days=days))
        return code, console.export_text()

    for folder in (site, authority.folder):
        assert status(folder, 0)[0] == 0
        code, text = status(folder, 24)
        assert code == 0
        assert "update now" in text
        code, text = status(folder, 31)
        assert (code, text.count("EXPIRED")) == (8, 1)
    authority.publish(crl_days=365)
    run("install update --folder trial/north", code=2)
    (tmp_path / "update").write_bytes(authority.bundle().to_bytes())
    run("install update --folder trial/north")
    for folder in (site, authority.folder):
        code, text = status(folder, 59)
        assert (code, "rotate now" in text) == (0, False)
        code, text = status(folder, 61)
        assert (code, "rotate now" in text) == (0, True)
        assert status(folder, 91)[0] == 8
    expire_crl(authority, site)
    assert status(site, 0)[0] == 8


def test_status_of_other_folders(run: Run, tmp_path: Path) -> None:
    run("enroll north --folder north")
    assert "nothing is installed" in run("status --folder north", code=2)
    with pytest.raises(ConfigurationError, match="no folder of a consortium"):
        show_status(tmp_path, Console())
    consortium(tmp_path / "trial")
    (tmp_path / "trial/north/tls.key").chmod(0o644)
    assert "chmod 600" in run("status --folder trial/north", code=2)
