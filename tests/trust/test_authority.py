"""Who gets a name in the roster, who loses it, and what is published."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from forged_certificates import consortium, new_request

from fedmed.errors import TrustError
from fedmed.trust.authority import Authority
from fedmed.trust.credentials import load_credentials
from fedmed.trust.enrolment import enroll, install
from fedmed.trust.fingerprints import root_fingerprint
from fedmed.trust.request import make_request, read_request
from fedmed.trust.roster import Role


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return consortium(tmp_path)


@pytest.fixture
def north(authority: Authority) -> Path:
    return authority.folder.parent / "north"


def test_name_of_a_member_cannot_be_taken(authority: Authority, north: Path) -> None:
    roster = authority.publication.roster
    for previous in (None, Ed25519PrivateKey.generate()):
        with pytest.raises(TrustError, match="do not vouch"):
            authority.admit(new_request("north", previous))
    # Another member's keys do not vouch for it either.
    south = load_credentials(north.parent / "south", None).signer.key
    with pytest.raises(TrustError, match="do not vouch"):
        authority.admit(new_request("north", south))
    assert authority.publish().roster == roster
    authority.admit(new_request("north", load_credentials(north, None).signer.key))
    assert len(authority.publish().roster.member("north").keys) == 2


def test_lost_keys_are_replaced_and_revoked(authority: Authority, north: Path) -> None:
    old = load_credentials(north, None).tls_certificate
    shutil.rmtree(north)
    authority.admit(enroll(north, "north", Role.site, (), None), replace=True)
    publication = authority.publish()
    assert publication.crl.get_revoked_certificate_by_serial_number(old.serial_number) is not None
    assert len(publication.roster.member("north").keys) == 1
    install(north, authority.bundle("north").to_bytes(), None, root_fingerprint(publication.root))
    assert load_credentials(north, None).name == "north"


def test_role_of_a_member_cannot_be_changed(authority: Authority, north: Path) -> None:
    key = load_credentials(north, None).signer.key
    request = make_request(
        "north",
        Role.server,
        ("a.org",),
        ec.generate_private_key(ec.SECP256R1()),
        Ed25519PrivateKey.generate(),
        key,
    )
    with pytest.raises(TrustError, match="choose another name"):
        authority.admit(request)


def test_revoked_keys_never_come_back(authority: Authority, north: Path) -> None:
    request = read_request((north / "request.json").read_bytes())
    authority.admit(request)
    assert authority.publish().roster.version == 1 + 1  # admitted before: nothing changes
    authority.revoke("north")
    authority.publish()
    for folder in (None, authority.folder):
        again = authority if folder is None else Authority.open(folder, None)
        with pytest.raises(TrustError, match="certified before"):
            again.admit(request)
        with pytest.raises(TrustError, match="nothing to revoke"):
            again.revoke("north")
    authority.admit(new_request("north"))
    assert "north" in authority.publish().roster.names(Role.site)


def test_refreshing_the_list_leaves_the_roster_alone(authority: Authority) -> None:
    before = authority.publication
    numbers = {before.crl.fingerprint(before.crl.signature_hash_algorithm)}  # type: ignore[arg-type]
    for _ in range(3):
        authority = Authority.open(authority.folder, None)
        after = authority.publish()
        after.check()
        after.check_not_older(before)
        assert after.signed_roster == before.signed_roster
        numbers.add(after.crl.fingerprint(after.crl.signature_hash_algorithm))  # type: ignore[arg-type]
        with pytest.raises(TrustError, match="list of revoked certificates is older"):
            before.check_not_older(after)
    assert len(numbers) == 4


@pytest.mark.parametrize("file", ["crl.pem", "roster.json"])
def test_publishing_cut_short_is_made_good(authority: Authority, north: Path, file: str) -> None:
    """A crash after the first of the two files is written, or a copy of one restored."""
    old = (authority.folder / file).read_bytes()
    authority.revoke("south")
    authority.publish()
    (authority.folder / file).write_bytes(old)
    whole = Authority.open(authority.folder, None).publish()
    whole.check()
    assert whole.roster.version == 4
    install(north, Authority.open(authority.folder, None).bundle().to_bytes(), None)
