"""OpenSSL and the verifier of ``cryptography`` agree with what this program says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from forged_certificates import consortium, expire_crl, forge_tls, other_authority

from fedmed.errors import ConfigurationError, TrustError
from fedmed.trust.authority import Authority
from fedmed.trust.certificate_checks import check_member_certificate
from fedmed.trust.credentials import load_credentials
from fedmed.trust.issuance import Purpose
from fedmed.trust.key_files import load_ec_key, load_ed25519_key, write_private_key
from fedmed.trust.publication import CRL, load_publication

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return consortium(tmp_path)


def _openssl(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["openssl", *words], cwd=folder, capture_output=True, check=False)


def _verified(folder: Path, purpose: str, file: str = "tls.crt", *more: str) -> str:
    done = _openssl(
        folder,
        *("verify", "-x509_strict", "-crl_check", "-purpose", purpose),
        *("-CAfile", "root.crt", "-CRLfile", "crl.pem", *more, file),
    )
    return "" if done.returncode == 0 else (done.stderr + done.stdout).decode()


@needs_openssl
def test_openssl_takes_the_chain_and_the_list(authority: Authority) -> None:
    north, server = (authority.folder.parent / name for name in ("north", "server"))
    assert _verified(north, "sslclient") == ""
    assert _verified(server, "sslserver", "tls.crt", "-verify_hostname", "localhost") == ""
    assert _verified(server, "sslserver", "tls.crt", "-verify_ip", "127.0.0.1") == ""
    assert _verified(north, "any", "signing.crt") == ""
    assert "hostname" in _verified(server, "sslserver", "tls.crt", "-verify_hostname", "other.org")


@needs_openssl
def test_openssl_refuses_what_is_for_another_purpose(authority: Authority) -> None:
    north, server = (authority.folder.parent / name for name in ("north", "server"))
    assert "purpose" in _verified(north, "sslserver")
    assert "purpose" in _verified(server, "sslclient")
    for purpose in ("sslclient", "sslserver"):
        assert "purpose" in _verified(north, purpose, "signing.crt")
    forge_tls(authority, north, purpose=Purpose.server_tls)
    assert "purpose" in _verified(north, "sslclient")


@needs_openssl
def test_openssl_refuses_the_revoked_and_the_expired(authority: Authority) -> None:
    north, south = (authority.folder.parent / name for name in ("north", "south"))
    authority.revoke("south")
    authority.publish()
    for folder in (north, south):
        shutil.copy(authority.folder / CRL, folder / CRL)
    assert _verified(north, "sslclient") == ""
    assert "revoked" in _verified(south, "sslclient")
    assert "revoked" in _verified(south, "any", "signing.crt")
    expire_crl(authority, north)
    assert "CRL has expired" in _verified(north, "sslclient")
    other_authority(north.parent / "other", south)
    assert "unable to get local issuer" in _verified(south, "sslclient")


@needs_openssl
def test_openssl_reads_encrypted_keys_and_needs_the_passphrase(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    write_private_key(tmp_path / "root.key", key, b"four random words")
    words = ("pkey", "-in", "root.key", "-pubout", "-passin")
    assert b"PUBLIC KEY" in _openssl(tmp_path, *words, "pass:four random words").stdout
    assert _openssl(tmp_path, *words, "pass:four random worlds").returncode != 0
    shown = _openssl(tmp_path, "asn1parse", "-in", "root.key").stdout
    for name in (b"PBES2", b"PBKDF2", b"hmacWithSHA256", b"aes-256-cbc", b":0927C0"):  # 600,000
        assert name in shown
    # And ours reads OpenSSL's.
    done = _openssl(
        tmp_path, *("genpkey", "-algorithm", "ED25519", "-aes256", "-pass", "pass:some words")
    )
    (tmp_path / "theirs.key").write_bytes(done.stdout)
    (tmp_path / "theirs.key").chmod(0o600)
    load_ed25519_key(tmp_path / "theirs.key", b"some words")
    with pytest.raises(ConfigurationError, match="no private key of an elliptic curve"):
        load_ec_key(tmp_path / "theirs.key", b"some words")


@needs_openssl
def test_openssl_reads_the_list(authority: Authority) -> None:
    authority.revoke("south")
    authority.publish()
    shown = _openssl(authority.folder, "crl", "-in", CRL, "-CAfile", "root.crt", "-noout", "-text")
    assert b"verify OK" in shown.stderr
    assert shown.stdout.count(b"Serial Number:") == 2


def test_rust_verifier_agrees(authority: Authority, tmp_path: Path) -> None:
    server = authority.folder.parent / "server"
    leaf = x509.load_pem_x509_certificate((server / "tls.crt").read_bytes())

    def verify(root: x509.Certificate, host: str) -> None:
        PolicyBuilder().store(Store([root])).build_server_verifier(x509.DNSName(host)).verify(
            leaf, []
        )

    verify(authority.publication.root, "localhost")
    with pytest.raises(VerificationError):
        verify(authority.publication.root, "other.example.org")
    other = Authority.create(tmp_path / "other", "fedmed trial, not for patients", None)
    with pytest.raises(VerificationError):
        verify(other.publication.root, "localhost")


def test_list_of_another_root_is_refused(authority: Authority, tmp_path: Path) -> None:
    north = authority.folder.parent / "north"
    other = Authority.create(tmp_path / "other", "fedmed trial, not for patients", None)
    load_publication(north)
    shutil.copy(other.folder / CRL, north / CRL)
    with pytest.raises(TrustError, match="not signed by the root"):
        load_publication(north)


def test_the_one_bit_that_other_verifiers_leave_open_is_closed(authority: Authority) -> None:
    """The count of unused bits of a signature whose last bit is 0 (X.690, 8.6.2.2)."""
    north = authority.folder.parent / "north"
    certificate = forge_tls(authority, north)
    while certificate.signature[-1] & 1:
        certificate = forge_tls(authority, north)
    changed = bytearray(certificate.public_bytes(Encoding.DER))
    changed[-len(certificate.signature) - 1] = 1
    other = x509.load_der_x509_certificate(bytes(changed))
    other.verify_directly_issued_by(authority.publication.root)  # does not mind
    check_member_certificate(certificate, authority.publication, Purpose.site_tls)
    with pytest.raises(TrustError, match="not signed"):
        check_member_certificate(other, authority.publication, Purpose.site_tls)
    (north / "tls.crt").write_bytes(other.public_bytes(Encoding.PEM))
    with pytest.raises(TrustError, match=r"tls\.crt is not exactly one certificate"):
        load_credentials(north, None)
