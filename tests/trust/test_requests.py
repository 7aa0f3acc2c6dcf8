"""Requests of members: each bit of one is vouched for by both of its keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from forged_certificates import new_request
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed.errors import TrustError
from fedmed.trust.canonical import canonical_json
from fedmed.trust.request import Request, make_request, read_request
from fedmed.trust.roster import Role
from fedmed.trust.signatures import Signer


@pytest.fixture(scope="module")
def request_() -> Request:
    return new_request("north")


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_bit_changed_in_a_request_is_found(request_: Request, data: st.DataObject) -> None:
    good = request_.to_bytes()
    assert read_request(good).fingerprint() == request_.fingerprint()
    bad = _flipped(good, data.draw(st.integers(0, 8 * len(good) - 1)))
    with pytest.raises(TrustError):
        read_request(bad)


def _changed(request: bytes, change: Callable[[dict[str, object]], object]) -> bytes:
    fields = json.loads(request)
    change(fields["request"])
    return canonical_json(fields)


def test_request_with_anothers_keys_is_refused() -> None:
    """Both keys of a request are proven to be in the hands of who made it, for this name."""
    one, other = new_request("north"), json.loads(new_request("south").to_bytes())["request"]
    assert read_request(one.to_bytes())
    for field in ("csr", "signing_key", "name"):
        with pytest.raises(TrustError):
            read_request(_changed(one.to_bytes(), lambda f, k=field: f.update({k: other[k]})))
    # Even signed by the attacker's own signing key: the CSR is for another name.
    stolen = make_request(
        "south",
        Role.site,
        (),
        ec.generate_private_key(ec.SECP256R1()),
        Ed25519PrivateKey.generate(),
    )
    attacker = Ed25519PrivateKey.generate()
    mixed = replace(one, csr=stolen.csr, signing_key=attacker.public_key())
    mixed = replace(
        mixed, signature=Signer("north", attacker).sign("request", mixed.signed_bytes())
    )
    with pytest.raises(TrustError):
        read_request(mixed.to_bytes())


def test_request_has_one_spelling(request_: Request) -> None:
    good = request_.to_bytes()
    upper = good.replace(*(text.encode() for text in _spellings(request_.signature)))
    assert upper != good
    with pytest.raises(TrustError):
        read_request(upper)


def _spellings(data: bytes) -> tuple[str, str]:
    return data.hex(), data.hex().upper()


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_request_for_another_curve_is_refused(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    request = make_request("north", Role.site, (), key, Ed25519PrivateKey.generate())
    with pytest.raises(TrustError):
        read_request(request.to_bytes())


def test_fingerprint_covers_what_is_certified() -> None:
    prints = set()
    tls, signing = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
    for name, role, hosts in (
        ("north", Role.site, ()),
        ("north", Role.server, ("a.org",)),
        ("north", Role.server, ("b.org",)),
        ("south", Role.site, ()),
    ):
        prints.add(make_request(name, role, hosts, tls, signing).fingerprint())
    assert len(prints) == 4
    assert all(len(text.replace("-", "")) * 4 >= 80 for text in prints)
