"""Credentials that are wrong in one way each are refused; as they were made they load."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from forged_certificates import (
    consortium,
    expire_crl,
    forge_tls,
    other_authority,
    revoke_and_install,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmed.errors import ConfigurationError, FedmedError, TrustError
from fedmed.trust.authority import ROOT_KEY, Authority
from fedmed.trust.certificate_checks import check_member_certificate
from fedmed.trust.credentials import load_credentials
from fedmed.trust.enrolment import enroll, install, rotate
from fedmed.trust.fingerprints import root_fingerprint
from fedmed.trust.issuance import Purpose, member_certificate
from fedmed.trust.key_files import load_ec_key
from fedmed.trust.publication import load_publication
from fedmed.trust.roster import Role
from fedmed.trust.simulated import demo_consortium, simulated_consortium


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium(tmp_path_factory.mktemp("untouched")).folder.parent


@pytest.fixture
def authority(untouched: Path, tmp_path: Path) -> Authority:
    shutil.copytree(untouched, tmp_path / "trial")
    return Authority.open(tmp_path / "trial" / "consortium", None)


@pytest.fixture
def north(authority: Authority) -> Path:
    folder = authority.folder.parent / "north"
    load_credentials(folder, None)
    return folder


def _ago(days: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) - timedelta(days=days)


def test_credentials_are_those_of_the_member(authority: Authority, north: Path) -> None:
    held = load_credentials(north, None)
    assert (held.name, held.role, held.folder) == ("north", Role.site, north)
    assert held.signer.key.public_key() in held.roster.signing_keys("north", Role.site)
    assert held.root == authority.publication.root
    assert held.roster.names(Role.site) == ("north", "south", "west")
    assert held.roster.names(Role.server) == ("server",)
    assert "private" not in repr(held).lower()


Forgery = Callable[[Authority, Path], object]
FORGERIES: dict[str, tuple[Forgery, str]] = {
    "expired": (
        lambda a, f: forge_tls(a, f, not_before=_ago(9), not_after=_ago(1)),
        "expired on",
    ),
    "not yet valid": (lambda a, f: forge_tls(a, f, not_before=_ago(-0.5)), "not valid before"),
    "server's purpose": (
        lambda a, f: forge_tls(a, f, purpose=Purpose.server_tls),
        "another purpose than site_tls",
    ),
    "signing purpose": (
        lambda a, f: forge_tls(a, f, purpose=Purpose.signing),
        "another purpose than site_tls",
    ),
    "wrong site": (lambda a, f: forge_tls(a, f, name="south"), "name different members"),
    "unknown site": (lambda a, f: forge_tls(a, f, name="nobody"), "name different members"),
    "wrong role": (lambda a, f: forge_tls(a, f, role=Role.server), "name different members"),
    "other root": (lambda a, f: other_authority(f.parent / "other", f), "not signed by the root"),
    "revoked": (
        lambda a, f: revoke_and_install(a, "north", f),
        "was revoked",
    ),
    "list out of date": (expire_crl, "ran out"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_credentials_are_refused(authority: Authority, north: Path, forgery: str) -> None:
    forge, message = FORGERIES[forgery]
    forge(authority, north)
    with pytest.raises(TrustError, match=message):
        load_credentials(north, None)


def test_forging_without_a_change_is_no_forgery(authority: Authority, north: Path) -> None:
    forge_tls(authority, north)
    assert load_credentials(north, None).name == "north"


PEERS: dict[str, tuple[Forgery, str]] = {
    **{name: FORGERIES[name] for name in FORGERIES if name not in ("list out of date", "revoked")},
    "wrong site": (
        lambda a, f: forge_tls(a, f, name="south"),
        "none of the member's present keys",
    ),
    "unknown site": (lambda a, f: forge_tls(a, f, name="nobody"), "not in the roster"),
    "wrong role": (
        lambda a, f: forge_tls(a, f, role=Role.server, purpose=Purpose.site_tls),
        "was shown by server",
    ),
}


@pytest.mark.parametrize("forgery", PEERS)
def test_forged_peer_is_refused(authority: Authority, north: Path, forgery: str) -> None:
    """As the server sees it, which has only the certificate and its own publication."""
    server = load_credentials(north.parent / "server", None).publication
    genuine = load_credentials(north, None).tls_certificate
    assert check_member_certificate(genuine, server, Purpose.site_tls).name == "north"
    forge, message = PEERS[forgery]
    made = forge(authority, north)
    if forgery == "other root":
        made = forge_tls(Authority.open(north.parent / "other", None), north)
    with pytest.raises(TrustError, match=message):
        check_member_certificate(made, server, Purpose.site_tls)  # type: ignore[arg-type]


def test_revoked_peer_is_refused_once_the_update_is_installed(
    authority: Authority, north: Path
) -> None:
    server = north.parent / "server"
    genuine = load_credentials(north, None).tls_certificate
    check_member_certificate(genuine, load_publication(server), Purpose.site_tls)
    revoke_and_install(authority, "north", server)
    with pytest.raises(TrustError, match="was revoked"):
        check_member_certificate(genuine, load_publication(server), Purpose.site_tls)
    # And a relay cannot leave the member in by keeping the old roster beside the new list.
    shutil.copy(north / "roster.json", server / "roster.json")
    with pytest.raises(TrustError, match="different versions"):
        load_publication(server)


def test_list_of_revoked_certificates_fails_closed(north: Path) -> None:
    tls, held = load_credentials(north, None).tls_certificate, load_publication(north)
    for days, holds in ((29.9, True), (30.1, False), (-1, False)):
        at = _ago(-days)
        if holds:
            assert load_credentials(north, None, at).name == "north"
            check_member_certificate(tls, load_publication(north, at), Purpose.site_tls, at)
        else:
            for load in (
                lambda at=at: load_credentials(north, None, at),
                lambda at=at: load_publication(north, at),
                # A server that runs on, and read its files while they were in force.
                lambda at=at: check_member_certificate(tls, held, Purpose.site_tls, at),
            ):
                with pytest.raises(TrustError):
                    load()


def test_list_from_the_future_is_refused(tmp_path: Path) -> None:
    """Whoever puts back this machine's clock does not revive what was revoked."""
    authority = demo_consortium(tmp_path, ["north"], ["localhost"], _ago(20))
    load_publication(tmp_path / "north", _ago(10))
    authority.publish()
    install(tmp_path / "north", authority.bundle().to_bytes(), None)
    load_publication(tmp_path / "north")
    with pytest.raises(TrustError, match="from the future"):
        load_publication(tmp_path / "north", _ago(10))


def test_role_is_the_rosters(authority: Authority, north: Path) -> None:
    held = load_credentials(north, None)
    other = tuple(replace(member, role=Role.server) for member in held.roster.members)
    signed = replace(held.publication.signed_roster, roster=replace(held.roster, members=other))
    with pytest.raises(TrustError, match="as server, not as site"):
        check_member_certificate(
            held.tls_certificate,
            replace(held.publication, signed_roster=signed),
            Purpose.site_tls,
        )


def test_signing_key_is_no_tls_key(authority: Authority, north: Path) -> None:
    """Even if the root had certified it as one."""
    held = load_credentials(north, None)
    now = _ago(0)
    certificate = member_certificate(
        load_ec_key(authority.folder / ROOT_KEY, None),
        held.root,
        held.signer.key.public_key(),
        Purpose.site_tls,
        Role.site,
        "north",
        (),
        now,
        now + timedelta(days=1),
    )
    with pytest.raises(TrustError, match="key of the wrong kind"):
        check_member_certificate(certificate, held.publication, Purpose.site_tls)


def test_certificates_end_after_90_days(authority: Authority, north: Path) -> None:
    authority.publish(crl_days=365)
    install(north, authority.bundle().to_bytes(), None)
    load_credentials(north, None, _ago(-89.9))
    with pytest.raises(TrustError, match="expired on"):
        load_credentials(north, None, _ago(-90.1))


def test_keys_of_an_older_generation_end_before_their_certificate(
    authority: Authority, north: Path
) -> None:
    """The roster bounds the overlap; the certificate itself would hold for 90 days."""
    old = load_credentials(north, None).tls_certificate
    authority.admit(rotate(north, None))
    publication = authority.publish(crl_days=365)
    assert check_member_certificate(old, publication, Purpose.site_tls, _ago(-29)).name == "north"
    with pytest.raises(TrustError, match="none of the member's present keys"):
        check_member_certificate(old, publication, Purpose.site_tls, _ago(-31))


@pytest.mark.parametrize("file", ["tls.key", "signing.key"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o610])
def test_key_that_others_reach_is_refused_with_the_remedy(
    north: Path, file: str, mode: int
) -> None:
    (north / file).chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {file}") as caught:
        load_credentials(north, None)
    assert str(north) not in str(caught.value)
    (north / file).chmod(0o400)
    assert load_credentials(north, None).name == "north"


def test_stolen_folder_is_of_no_use_without_the_passphrase(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "consortium", "Gliomas", None)
    folder = tmp_path / "north"
    authority.admit(enroll(folder, "north", Role.site, (), b"four random words"))
    root = root_fingerprint(authority.publish().root)
    bundle = authority.bundle("north").to_bytes()
    with pytest.raises(ConfigurationError, match="is encrypted"):
        install(folder, bundle, None, root)
    install(folder, bundle, b"four random words", root)
    held = load_credentials(folder, b"four random words")
    assert held.passphrase == b"four random words"
    assert b"four random" not in repr(held).encode()
    with pytest.raises(ConfigurationError, match="is encrypted"):
        load_credentials(folder, None)
    with pytest.raises(ConfigurationError, match="passphrase is wrong"):
        load_credentials(folder, b"four random worlds")


def test_keys_of_another_member_do_not_go_with_the_certificates(north: Path) -> None:
    for file in ("tls.key", "signing.key"):
        own = (north / file).read_bytes()
        shutil.copy(north.parent / "south" / file, north / file)
        with pytest.raises(TrustError, match=f"{file} is not the key"):
            load_credentials(north, None)
        (north / file).write_bytes(own)
    (north / "tls.key").unlink()
    (north / "tls.key").symlink_to(north / "signing.key")
    with pytest.raises(ConfigurationError, match="no private key of an elliptic curve"):
        load_credentials(north, None)


SIGNED_FILES = ("tls.crt", "signing.crt", "root.crt", "roster.json", "crl.pem")


@pytest.mark.parametrize("file", SIGNED_FILES)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_bit_changed_in_a_signed_file_is_found(
    north: Path, file: str, data: st.DataObject
) -> None:
    path = north / file
    good = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bad)
    try:
        with pytest.raises(FedmedError):
            load_credentials(north, None)
    finally:
        path.write_bytes(good)
    assert load_credentials(north, None).name == "north"


@pytest.mark.parametrize("file", [*SIGNED_FILES, "tls.key", "signing.key"])
def test_missing_and_empty_files_are_named(north: Path, file: str) -> None:
    (north / file).write_bytes(b"")
    with pytest.raises(FedmedError) as caught:
        load_credentials(north, None)
    assert str(north) not in str(caught.value)
    (north / file).unlink()
    with pytest.raises(ConfigurationError, match=file):
        load_credentials(north, None)


def test_simulated_consortium_is_made_once(tmp_path: Path) -> None:
    simulated_consortium(tmp_path / "keys", ["b", "a"])
    folder = tmp_path / "keys"
    before = {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}
    assert not list(folder.glob("**/root.key"))
    held = load_credentials(folder / "a", None, _ago(-3600))
    assert held.roster.names(Role.site) == ("a", "b")
    assert load_credentials(folder / "server", None).role is Role.server
    simulated_consortium(folder, ["a", "b"])
    assert {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()} == before
    with pytest.raises(ConfigurationError, match="other sites"):
        simulated_consortium(folder, ["a", "c"])
