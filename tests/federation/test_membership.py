"""The published files of a folder, read again when they change; any fault shuts the door."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from forged_certificates import consortium, expire_crl, revoke_and_install

from fedmed.errors import TrustError
from fedmed.federation.membership import Membership
from fedmed.trust.authority import Authority
from fedmed.trust.credentials import load_credentials
from fedmed.trust.issuance import Purpose


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium(tmp_path_factory.mktemp("made") / "all").folder.parent


@pytest.fixture
def authority(made: Path, tmp_path: Path) -> Authority:
    shutil.copytree(made, tmp_path / "all")
    return Authority.open(tmp_path / "all" / "consortium", None)


@pytest.fixture
def folder(authority: Authority) -> Path:
    return authority.folder.parent / "server"


@pytest.fixture
def membership(folder: Path) -> Membership:
    return Membership(folder, load_credentials(folder, None).publication)


def test_same_object_until_the_files_change(
    authority: Authority, folder: Path, membership: Membership
) -> None:
    first = membership.publication()
    assert membership.publication() is first
    revoke_and_install(authority, "north", folder)
    second = membership.publication()
    assert second is not first
    assert second.roster.version > first.roster.version
    assert membership.publication() is second


def test_revoked_site_is_no_member_from_the_moment_of_the_update(
    authority: Authority, folder: Path, membership: Membership
) -> None:
    certificates = {
        site: load_credentials(folder.parent / site, None).tls_certificate
        for site in ("north", "south")
    }
    for site, certificate in certificates.items():
        assert membership.member(certificate, Purpose.site_tls).name == site
    revoke_and_install(authority, "north", folder)
    with pytest.raises(TrustError, match="revoked"):
        membership.member(certificates["north"], Purpose.site_tls)
    assert membership.member(certificates["south"], Purpose.site_tls).name == "south"


@pytest.mark.parametrize("name", ["root.crt", "roster.json", "crl.pem"])
@pytest.mark.parametrize("fault", ["gone", "empty", "changed"])
def test_broken_file_shuts_the_door_until_it_is_whole(
    folder: Path, membership: Membership, name: str, fault: str
) -> None:
    held = membership.publication()
    whole = (folder / name).read_bytes()
    if fault == "gone":
        (folder / name).unlink()
    else:
        middle = len(whole) // 2
        changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        (folder / name).write_bytes(b"" if fault == "empty" else changed)
    for _ in range(2):
        with pytest.raises(TrustError):
            membership.publication()
    (folder / name).write_bytes(whole)
    assert membership.publication().roster == held.roster


def test_older_files_are_not_gone_back_to(
    authority: Authority, folder: Path, membership: Membership, tmp_path: Path
) -> None:
    """A server that puts the old files back would bring a revoked site in again."""
    shutil.copytree(folder, tmp_path / "old")
    revoke_and_install(authority, "north", folder)
    membership.publication()
    for name in ("roster.json", "crl.pem"):
        shutil.copy(tmp_path / "old" / name, folder / name)
    with pytest.raises(TrustError, match="older"):
        membership.publication()
    # Control: a process that never saw the newer ones takes them.
    Membership(folder, load_credentials(tmp_path / "old", None).publication).publication()


def test_another_root_is_refused(membership: Membership, folder: Path, tmp_path: Path) -> None:
    membership.publication()
    other = consortium(tmp_path / "other").folder.parent / "server"
    for name in ("root.crt", "roster.json", "crl.pem"):
        shutil.copy(other / name, folder / name)
    with pytest.raises(TrustError, match="root"):
        membership.publication()


def test_list_that_ran_out_shuts_the_door(
    authority: Authority, folder: Path, membership: Membership
) -> None:
    membership.publication()
    expire_crl(authority, folder)
    with pytest.raises(TrustError):
        membership.publication()


def test_time_alone_runs_the_list_out(folder: Path) -> None:
    publication = load_credentials(folder, None).publication
    for days, holds in ((29, True), (31, False)):
        at = datetime.now(UTC) + timedelta(days=days)
        membership = Membership(folder, publication, lambda at=at: at)
        if holds:
            membership.publication()
        else:
            with pytest.raises(TrustError):
                membership.publication()
