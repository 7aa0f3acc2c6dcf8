"""Bundles on their way to members who do not trust what lies in between."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from forged_certificates import consortium, new_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmed.errors import ConfigurationError, FedmedError, TrustError
from fedmed.trust import enrolment
from fedmed.trust.authority import Authority
from fedmed.trust.bundle import Bundle, read_bundle
from fedmed.trust.canonical import canonical_json
from fedmed.trust.credentials import load_credentials
from fedmed.trust.enrolment import enroll, install, rotate
from fedmed.trust.fingerprints import root_fingerprint
from fedmed.trust.member_folder import load_signing_key, load_tls_key
from fedmed.trust.publication import Publication
from fedmed.trust.request import make_request, read_request
from fedmed.trust.roster import Role


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return consortium(tmp_path)


@pytest.fixture
def north(authority: Authority) -> Path:
    return authority.folder.parent / "north"


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_private_files_are_private_from_their_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watched at the moment each file is opened, under the most generous umask."""
    modes: dict[str, int] = {}
    real_fdopen = os.fdopen

    def watched(descriptor: int, mode: str) -> object:
        if mode == "wb":
            name = Path(f"/proc/self/fd/{descriptor}").readlink().name
            modes[name] = stat.S_IMODE(os.fstat(descriptor).st_mode)
            assert os.fstat(descriptor).st_size == 0
        return real_fdopen(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", watched)
    before = os.umask(0)
    try:
        consortium(tmp_path / "watched", ["north"])
    finally:
        os.umask(before)
    keys = {name for name in modes if name.endswith(".key")}
    assert keys == {"root.key", "tls.key", "signing.key"}
    assert {modes[name] for name in keys} == {0o600}
    assert {modes[name] for name in modes.keys() - keys} == {0o644}
    for folder in ("consortium", "north", "server"):
        assert stat.S_IMODE((tmp_path / "watched" / folder).stat().st_mode) == 0o700


def test_link_in_place_of_a_key_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "north"
    folder.mkdir()
    (folder / "tls.key").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigurationError):
        enroll(folder, "north", Role.site, (), None)
    assert not (tmp_path / "victim").exists()


def test_roll_back_is_refused(authority: Authority, north: Path) -> None:
    old = authority.bundle().to_bytes()
    old_list = authority.publish()
    authority.revoke("south")
    authority.publish()
    new = authority.bundle().to_bytes()
    install(north, new, None)
    before = _contents(north)
    with pytest.raises(TrustError, match="older than the installed version"):
        install(north, old, None)
    # The old roster beside the new list, and the new roster beside the old list.
    now = authority.publication
    for mixed in (
        Publication(now.root, old_list.signed_roster, now.crl),
        Publication(now.root, now.signed_roster, old_list.crl),
    ):
        with pytest.raises(TrustError, match="different versions"):
            install(north, Bundle(mixed, {}).to_bytes(), None)
    assert _contents(north) == before
    install(north, new, None)


def test_two_rosters_of_one_version_are_refused(authority: Authority, north: Path) -> None:
    copy = authority.folder.with_name("copy")
    shutil.copytree(authority.folder, copy)
    for folder, name in ((authority.folder, "south"), (copy, "west")):
        held = Authority.open(folder, None)
        held.revoke(name)
        held.publish()
        bundle = held.bundle().to_bytes()
        if name == "south":
            install(north, bundle, None)
    with pytest.raises(TrustError, match="differ"):
        install(north, bundle, None)


def test_bundle_out_of_date_is_refused(authority: Authority, north: Path) -> None:
    authority.publish()
    bundle = authority.bundle().to_bytes()
    for days, message in ((31, "ran out"), (-1, "not valid before|from the future")):
        with pytest.raises(TrustError, match=message):
            install(north, bundle, None, at=datetime.now(UTC) + timedelta(days=days))
    install(north, bundle, None, at=datetime.now(UTC) + timedelta(days=29))


def test_another_root_never_replaces_the_pinned_one(
    authority: Authority, north: Path, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", "fedmed trial, not for patients", None)
    other.admit(read_request((north / "request.json").read_bytes()))
    other.publish()
    bundle = other.bundle("north").to_bytes()
    before = _contents(north)
    for said in (None, root_fingerprint(other.publication.root)):
        with pytest.raises(TrustError, match="another root"):
            install(north, bundle, None, said)
    # Another root's roster under the true root's certificate.
    mixed = json.loads(bundle)
    mixed["root"] = json.loads(authority.bundle().to_bytes())["root"]
    with pytest.raises(TrustError, match="not signed by the root"):
        install(north, canonical_json(mixed), None)
    assert _contents(north) == before
    # The pin alone is enough: nothing else that was installed is needed to refuse it.
    for file in ("roster.json", "crl.pem", "tls.crt", "signing.crt"):
        (north / file).unlink()
    with pytest.raises(TrustError, match="pinned"):
        install(north, bundle, None, root_fingerprint(other.publication.root))
    install(north, authority.bundle("north").to_bytes(), None)


def test_bundle_of_another_member_or_for_other_keys_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    east = tmp_path / "east"
    request = enroll(east, "east", Role.site, (), None)
    root = root_fingerprint(authority.publication.root)
    with pytest.raises(TrustError, match="certificates for south, none for 'east'"):
        install(east, authority.bundle("south").to_bytes(), None, root)
    # Somebody else's keys were signed under the name.
    authority.admit(new_request("east"))
    authority.publish()
    with pytest.raises(TrustError, match="somebody took your name"):
        install(east, authority.bundle("east").to_bytes(), None, root)
    assert not (east / "root.crt").exists()
    assert read_request((east / "request.json").read_bytes()) == request


def test_certificates_of_another_member_under_this_name_are_refused(
    authority: Authority, tmp_path: Path
) -> None:
    """A relay swaps certificates around inside a bundle; each one by itself is genuine."""
    east = tmp_path / "east"
    authority.admit(enroll(east, "east", Role.site, (), None))
    root = root_fingerprint(authority.publish().root)
    fields = json.loads(authority.bundle().to_bytes())
    good = canonical_json(fields)
    certificates = fields["certificates"]
    swaps = {
        "other member": {"east": certificates["south"]},
        "other signing": {
            "east": {**certificates["east"], "signing": certificates["south"]["signing"]}
        },
        "exchanged": {
            "east": {
                "tls": certificates["east"]["signing"],
                "signing": certificates["east"]["tls"],
            }
        },
    }
    for swapped in swaps.values():
        with pytest.raises(TrustError):
            install(east, canonical_json({**fields, "certificates": swapped}), None, root)
    install(east, good, None, root)
    assert load_credentials(east, None).name == "east"


def test_own_keys_under_another_name_are_refused(authority: Authority, tmp_path: Path) -> None:
    """This member asked to be called east; a bundle cannot rename it."""
    east = tmp_path / "east"
    enroll(east, "east", Role.site, (), None)
    keys = load_tls_key(east, None), load_signing_key(east, None)
    authority.admit(make_request("best", Role.site, (), *keys))
    root = root_fingerprint(authority.publish().root)
    renamed = {"east": authority.bundle("best").certificates["best"]}
    bundle = Bundle(authority.publication, renamed).to_bytes()
    with pytest.raises(TrustError, match="another member than was asked for"):
        install(east, bundle, None, root)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, str]:
    """A member that has enrolled, the bundle for it, and the root's fingerprint."""
    authority = consortium(tmp_path_factory.mktemp("fresh"), ["north"])
    east = authority.folder.parent / "east"
    authority.admit(enroll(east, "east", Role.site, (), None))
    root = root_fingerprint(authority.publish().root)
    return east, authority.bundle("east").to_bytes(), root


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_bit_changed_in_a_bundle_is_found(
    fresh: tuple[Path, bytes, str], data: st.DataObject
) -> None:
    folder, good, root = fresh
    before = _contents(folder)
    bad = _flipped(good, data.draw(st.integers(0, 8 * len(good) - 1)))
    with pytest.raises(FedmedError):
        install(folder, bad, None, root)
    assert _contents(folder) == before


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_truncated_bundles_are_found(fresh: tuple[Path, bytes, str], data: st.DataObject) -> None:
    _, good, _ = fresh
    with pytest.raises(TrustError):
        read_bundle(good[: data.draw(st.integers(0, len(good) - 1))])


def test_unchanged_bundle_installs(fresh: tuple[Path, bytes, str]) -> None:
    folder, good, root = fresh
    with pytest.raises(TrustError, match="root is not known yet"):
        install(folder, good, None)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "east"
        shutil.copytree(folder, copy)
        install(copy, good, None, root)
        assert load_credentials(copy, None).name == "east"


def test_installation_cut_short_anywhere_is_taken_up_again(
    authority: Authority, north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write and rename fails once; repeated, the installation comes to its end."""
    authority.admit(rotate(north, None))
    authority.publish()
    bundle = authority.bundle("north").to_bytes()
    new = read_request((north / "next/request.json").read_bytes())
    real_rename, real_write = Path.replace, enrolment.replace
    cut = 0
    for allowed in range(20):
        folder = north.with_name(f"cut{allowed}")
        shutil.copytree(north, folder)
        left = allowed

        def spend() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        def rename(path: Path, target: Path) -> Path:
            spend()
            return real_rename(path, target)

        def write(path: Path, content: bytes, mode: int) -> None:
            spend()
            real_write(path, content, mode)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", rename)
            patch.setattr(enrolment, "replace", write)
            try:
                install(folder, bundle, None)
            except KeyboardInterrupt:
                cut += 1
        install(folder, bundle, None)
        held = load_credentials(folder, None)
        assert held.signer.key.public_key() == new.signing_key
        rotate(folder, None)  # nothing of the last rotation is in the way
    assert 8 <= cut < 20
