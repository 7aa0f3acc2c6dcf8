"""What the transparency log costs: a leaf on the server, an audit of the whole run.

A run of 1,000 rounds is written as the server writes it, with real keys, then checked as
``fedmed audit verify`` checks it. ``verify_50_s``: 50 signatures a round (51: 17 sites, each with a
masked input, a confirmation and a cosignature). ``verify_150_s``: 50 sites, 150
signatures a round. ``signatures_alone_s`` is the bare check of as many signatures in one thread,
before anything is read, parsed or hashed.
"""

from __future__ import annotations

import datetime
import hashlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from machine import print_machine, read_arguments, write_figures
from rich import box
from rich.console import Console
from rich.table import Table

from fedmed.trust.audit.leaves import plan_sha256, round_leaf, start_leaf
from fedmed.trust.audit.log import TransparencyLog
from fedmed.trust.audit.verify import verify_bundle
from fedmed.trust.context import RoundContext
from fedmed.trust.envelope import Part, seal
from fedmed.trust.roster import Member, MemberKeys, Role, Roster
from fedmed.trust.roster_file import sign_roster
from fedmed.trust.signatures import Signer

RUN = "benchmark"
PLAN = {"privacy": {"epsilon": 3.0}, "transport": {"mode": "secagg"}}
TARGET_SECONDS = 10
TARGET_ROUNDS = 1000
PARTS = {"update": Part(40_000_000, "ab" * 32), "counts": Part(8_192, "cd" * 32)}


@dataclass(frozen=True)
class Written:
    """A run's log on disk.

    Attributes:
        append_s: mean seconds for a leaf and the cosignatures of its round, both synced.
        reopen_s: seconds to open the log again after a restart.
        megabytes: of the bundle.
    """

    append_s: float
    reopen_s: float
    megabytes: float


def write_run(folder: Path, sites: int, rounds: int) -> tuple[Written, bytes]:
    """Write the log of a run with real signatures; return its costs and the root as PEM."""
    signers = [Signer(f"site-{i:02d}", Ed25519PrivateKey.generate()) for i in range(sites)]
    server = Signer("hub", Ed25519PrivateKey.generate())
    root_key = ec.generate_private_key(ec.SECP384R1())
    roster = sign_roster(_roster(server, signers), root_key)
    seconds = 0.0
    with TransparencyLog(folder, server, RUN) as log:
        log.append(start_leaf(RUN, PLAN, _model(0), roster.to_json()))
        for number in range(1, rounds + 1):
            head = log.checkpoint
            cosignatures = {signer.name: head.cosign(signer) for signer in signers}
            leaf = _round(log, signers, number)
            start = time.perf_counter()
            log.cosigned(cosignatures)
            log.append(leaf)
            seconds += time.perf_counter() - start
    start = time.perf_counter()
    TransparencyLog(folder, server, RUN).close()
    reopen = time.perf_counter() - start
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    root = _certificate(root_key).public_bytes(Encoding.PEM)
    return Written(seconds / rounds, reopen, size), root


def verify_run(folder: Path, root: bytes, expected: int) -> float:
    """Return the seconds of an audit.

    Raises:
        RuntimeError: if it did not check as many signatures as were written.
    """
    start = time.perf_counter()
    report = verify_bundle(folder, root)
    seconds = time.perf_counter() - start
    if report.masked + report.confirmations + report.cosignatures != expected:
        raise RuntimeError("the audit has left signatures out")
    return seconds


def signatures_alone(count: int) -> float:
    """Return the seconds that bare Ed25519 checks of a short message take in one thread."""
    key = Ed25519PrivateKey.generate()
    message = b"m" * 600
    signature = key.sign(message)
    public = key.public_key()
    sample = 2000
    start = time.perf_counter()
    for _ in range(sample):
        public.verify(signature, message)
    return (time.perf_counter() - start) * count / sample


def _round(log: TransparencyLog, signers: list[Signer], number: int) -> dict:
    names = tuple(signer.name for signer in signers)
    context = RoundContext(
        run=RUN,
        purpose="train",
        round=number,
        attempt=1,
        cohort=names,
        roster=log.roster.sha256(),
        plan=plan_sha256(PLAN),
        model=log.model,
        weight_bound=10_000,
        log_size=log.size,
        log_root=log.root,
    )
    digest = context.sha256()
    report = {"epsilon": number / 1000, "delta": 1e-5}
    masked = {"sharers": list(names), "report": report}
    confirmed = {"survivors": list(names), "report": {}}
    return round_leaf(
        context,
        names,
        names,
        _model(number),
        {s.name: seal(s, "masked", digest, 2, masked, PARTS).to_bytes() for s in signers},
        {s.name: seal(s, "confirmed", digest, 3, confirmed).to_bytes() for s in signers},
    )


def _model(number: int) -> str:
    return hashlib.sha256(f"model {number}".encode()).hexdigest()


def _roster(server: Signer, signers: list[Signer]) -> Roster:
    now = int(time.time())
    members = [
        Member(
            signer.name,
            Role.server if signer is server else Role.site,
            (
                MemberKeys(
                    signer.key.public_key().public_bytes_raw().hex(),
                    "00" * 32,
                    now - 3600,
                    now + 90 * 86400,
                ),
            ),
        )
        for signer in (server, *signers)
    ]
    return Roster("benchmark", 1, now, tuple(sorted(members, key=lambda member: member.name)))


def _certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark root")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA384())
    )


def main() -> None:
    """Measure, print the table, write the figures."""
    arguments = read_arguments("What the transparency log costs.")
    console = Console()
    print_machine(console)
    rounds = 200 if arguments.quick else TARGET_ROUNDS
    figures: dict[str, float] = {"rounds": rounds}
    table = Table(title=f"A run of {rounds:,} rounds", box=box.SIMPLE, show_edge=False)
    for column in ("signatures a round", "bundle", "leaf", "reopen", "audit", "signatures alone"):
        table.add_column(column, justify="right")
    for label, sites in ((50, 17), (150, 50)):
        with tempfile.TemporaryDirectory() as folder:
            console.print(f"{sites} sites: writing {rounds} rounds", style="dim")
            written, root = write_run(Path(folder), sites, rounds)
            count = 3 * sites * rounds
            verify = min(verify_run(Path(folder), root, count) for _ in range(2))
        alone = signatures_alone(count)
        figures |= {
            f"verify_{label}_s": verify,
            f"signatures_alone_{label}_s": alone,
            f"append_{label}_ms": written.append_s * 1e3,
            f"reopen_{label}_s": written.reopen_s,
            f"bundle_{label}_mb": written.megabytes,
        }
        table.add_row(
            f"{3 * sites}",
            f"{written.megabytes:.0f} MB",
            f"{written.append_s * 1e3:.1f} ms",
            f"{written.reopen_s:.2f} s",
            f"{verify:.2f} s",
            f"{alone:.2f} s",
        )
    console.print(table)
    if rounds == TARGET_ROUNDS:
        reached = "reached" if figures["verify_50_s"] < TARGET_SECONDS else "missed"
        console.print(
            f"Audit of {rounds:,} rounds with 50 signatures: {figures['verify_50_s']:.1f} s "
            f"(target: under {TARGET_SECONDS} s; {reached})"
        )
    write_figures(arguments.json, "audit_log", figures)


if __name__ == "__main__":
    main()
