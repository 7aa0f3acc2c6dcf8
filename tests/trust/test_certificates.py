"""Keys and certificates of the demonstration authority, checked by other implementations."""

from __future__ import annotations

import datetime
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedmed.errors import ConfigurationError
from fedmed.trust.certificates import (
    create_authority,
    create_site_key,
    issue_server_certificate,
    load_public_keys,
    load_site_key,
    require_private_mode,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_authority(tmp_path, "Consortium of tests")
    issue_server_certificate(tmp_path, hosts=("server.example.org", "127.0.0.1"), days=30)
    return tmp_path


def _verify(folder: Path, authority: Path, host: str) -> None:
    roots = x509.load_pem_x509_certificates(authority.read_bytes())
    leaf = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    verifier = PolicyBuilder().store(Store(roots)).build_server_verifier(x509.DNSName(host))
    verifier.verify(leaf, [])


def test_certificate_passes_an_independent_verifier(folder: Path, tmp_path: Path) -> None:
    _verify(folder, folder / "ca.crt", "server.example.org")
    with pytest.raises(VerificationError):
        _verify(folder, folder / "ca.crt", "other.example.org")
    other = create_authority(tmp_path / "other", "Consortium of tests")
    with pytest.raises(VerificationError):
        _verify(folder, other, "server.example.org")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
def test_openssl_agrees(folder: Path) -> None:
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca.crt"]
    for host, right in (("server.example.org", True), ("wrong.example.org", False)):
        done = subprocess.run(
            [*command, "-verify_hostname", host, "server.crt"],
            cwd=folder,
            capture_output=True,
            check=False,
        )
        assert (done.returncode == 0) is right, done.stderr


def test_certificate_says_what_it_is_for(folder: Path) -> None:
    leaf = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    left = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)


def test_private_keys_are_private_from_their_first_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watched at the moment each file is opened, under the most generous umask."""
    modes: dict[str, int] = {}
    real_fdopen = os.fdopen

    def watched(descriptor: int, mode: str) -> object:
        modes[Path(f"/proc/self/fd/{descriptor}").readlink().name] = os.fstat(descriptor).st_mode
        assert os.fstat(descriptor).st_size == 0
        return real_fdopen(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", watched)
    before = os.umask(0)
    try:
        create_authority(folder / "new", "x")
        issue_server_certificate(folder / "new")
        create_site_key(folder / "new", "north")
    finally:
        os.umask(before)
    assert {name: stat.S_IMODE(mode) for name, mode in modes.items()} == {
        "ca.key": 0o600,
        "ca.crt": 0o644,
        "server.key": 0o600,
        "server.crt": 0o644,
        "north.key": 0o600,
        "north.pub": 0o644,
    }


def test_nothing_is_written_over(folder: Path) -> None:
    create_site_key(folder, "north")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigurationError, match=r"ca\.key exists"):
        create_authority(folder, "again")
    with pytest.raises(ConfigurationError, match=r"server\.key exists"):
        issue_server_certificate(folder)
    with pytest.raises(ConfigurationError, match=r"north\.key exists"):
        create_site_key(folder, "north")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_link_in_place_of_a_key_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "north.key").symlink_to(victim)
    with pytest.raises(ConfigurationError):
        create_site_key(tmp_path, "north")
    assert not victim.exists()


def test_site_keys_round_trip(tmp_path: Path) -> None:
    private, public = create_site_key(tmp_path, "north")
    create_site_key(tmp_path, "south")
    assert private.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    key = load_site_key(private)
    assert isinstance(key.curve, ec.SECP384R1)
    keys = load_public_keys(tmp_path)
    assert list(keys) == ["north", "south"]
    assert keys["north"].public_numbers() == key.public_key().public_numbers()
    assert keys["south"].public_numbers() != key.public_key().public_numbers()
    assert public.read_bytes().startswith(b"ecdsa-sha2-nistp384 ")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644, 0o610])
def test_key_that_others_reach_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    private, _ = create_site_key(tmp_path, "north")
    require_private_mode(private)
    private.chmod(mode)
    for check in (require_private_mode, load_site_key):
        with pytest.raises(ConfigurationError, match=r"chmod 600 north\.key") as caught:
            check(private)
        assert str(tmp_path) not in str(caught.value)
    private.chmod(0o400)
    load_site_key(private)


@pytest.mark.parametrize("site", ["", "../up", "a/b", ".hidden", "North", "a b", "x" * 64, "a\n"])
def test_names_that_are_paths_or_odd_are_refused(tmp_path: Path, site: str) -> None:
    with pytest.raises(ConfigurationError):
        create_site_key(tmp_path / "keys", site)
    assert list(tmp_path.rglob("*.key")) == []


def test_unusable_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no public key"):
        load_public_keys(tmp_path)
    with pytest.raises(ConfigurationError, match=r"north\.key"):
        load_site_key(tmp_path / "north.key")
    (tmp_path / "north.key").write_bytes(b"not a key")
    (tmp_path / "north.key").chmod(0o600)
    with pytest.raises(ConfigurationError, match="not an EC private key"):
        load_site_key(tmp_path / "north.key")
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    (tmp_path / "north.pub").write_bytes(
        other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    with pytest.raises(ConfigurationError, match=r"north\.pub is not"):
        load_public_keys(tmp_path)


def test_authority_is_needed_to_issue(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ca\.key"):
        issue_server_certificate(tmp_path)
    create_authority(tmp_path, "x")
    with pytest.raises(ConfigurationError, match="host"):
        issue_server_certificate(tmp_path, hosts=())
