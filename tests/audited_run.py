"""A small consortium that trains and keeps a log, for tests of the audit."""

import datetime
import hashlib
import shutil
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedmed.trust.audit import leaves
from fedmed.trust.audit.log import TransparencyLog
from fedmed.trust.audit.witness import Witness
from fedmed.trust.context import RoundContext
from fedmed.trust.envelope import Part, seal
from fedmed.trust.roster import Member, MemberKeys, Role, Roster
from fedmed.trust.roster_file import sign_roster
from fedmed.trust.signatures import Signer

START = 1_800_000_000
RUN = "5f0e3a7c9b1d2e4f"
SITES = ("east", "north", "south", "west")


def digest(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


def self_signed(key):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "consortium root")])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=3650))
        .sign(key, hashes.SHA384())
    )


def public_hex(signer):
    return signer.key.public_key().public_bytes_raw().hex()


class Consortium:
    """Root, server, sites and their keys; ``now`` is everybody's clock."""

    def __init__(self, sites=SITES):
        self.root_key = ec.generate_private_key(ec.SECP384R1())
        self.root = self_signed(self.root_key)
        self.root_pem = self.root.public_bytes(Encoding.PEM)
        self.server = Signer("hub", Ed25519PrivateKey.generate())
        self.signers = {site: Signer(site, Ed25519PrivateKey.generate()) for site in sites}
        self.version = 1
        self.now = START

    def clock(self):
        return self.now

    def roster(self, **expiry):
        """``expiry``: last second of a member's key, by name."""
        members = [
            Member(
                signer.name,
                Role.server if signer is self.server else Role.site,
                (
                    MemberKeys(
                        public_hex(signer),
                        digest(signer.name),
                        START - 1000,
                        expiry.get(signer.name, START + 10**9),
                    ),
                ),
            )
            for signer in (self.server, *self.signers.values())
        ]
        members.sort(key=lambda member: member.name)
        return Roster("lung consortium", self.version, START, tuple(members))

    def signed_roster(self, **expiry):
        return sign_roster(self.roster(**expiry), self.root_key).to_json()


class AuditedRun:
    """One run and its log. Attributes can be set between rounds to have something go wrong."""

    def __init__(self, folder, consortium=None, mode="secagg", witnesses=True):
        self.consortium = consortium or Consortium()
        self.folder = folder
        self.plan = {"seed": 7, "privacy": {"epsilon": 3.0}, "transport": {"mode": mode}}
        self.log = self.open()
        self.witnesses = {
            site: Witness(folder.parent / f"{site}.witness.json", signer)
            for site, signer in self.consortium.signers.items()
        }
        if not witnesses:
            self.witnesses = {}
        self.epsilons = dict.fromkeys(self.consortium.signers, 0.0)
        self.roster = self.consortium.signed_roster()

    def open(self):
        return TransparencyLog(self.folder, self.consortium.server, RUN, now=self.consortium.clock)

    def start(self):
        leaf = leaves.start_leaf(RUN, self.plan, digest("model 0"), self.roster, self.time())
        return self.log.append(leaf)

    def time(self):
        return self.consortium.now

    def context(self, number, purpose="train", **changes):
        context = RoundContext(
            run=RUN,
            purpose=purpose,
            round=number,
            attempt=1,
            cohort=tuple(sorted(self.consortium.signers)),
            roster=self.log.roster.sha256(),
            plan=leaves.plan_sha256(self.plan),
            model=self.log.model,
            weight_bound=1000,
            log_size=self.log.size,
            log_root=self.log.root,
        )
        return replace(context, **changes)

    def cosign(self, context, sites):
        """Let sites cosign the head as they do in step 1."""
        keys = [self.consortium.server.key.public_key()]
        signatures = {
            site: self.witnesses[site].cosign(
                self.log.invitation(self.witnesses[site].witnessed_size(self.log.origin)),
                context,
                "hub",
                keys,
            )
            for site in sites
            if site in self.witnesses
        }
        self.log.cosigned(signatures)

    def masked(self, site, context, sharers, **report):
        self.epsilons[site] += 0.25
        body = {
            "sharers": list(sharers),
            "report": {"epsilon": self.epsilons[site], "delta": 1e-5, **report},
        }
        parts = {name: Part.of(f"{site} {name}".encode()) for name in ("update", "counts")}
        envelope = seal(self.consortium.signers[site], "masked", context.sha256(), 2, body, parts)
        return envelope.to_bytes()

    def confirmed(self, site, context, survivors):
        body = {"survivors": list(survivors), "report": {}}
        signer = self.consortium.signers[site]
        return seal(signer, "confirmed", context.sha256(), 3, body).to_bytes()

    def round_leaf(self, number, purpose="train", dropped=(), **changes):
        """Return the leaf of a round; ``dropped`` sites made masks and sent nothing."""
        context = self.context(number, purpose, **changes)
        self.cosign(context, context.cohort)
        survivors = [site for site in context.cohort if site not in dropped]
        model_out = digest(f"model {number}") if purpose == "train" else context.model
        return leaves.round_leaf(
            context,
            context.cohort,
            survivors,
            model_out,
            {site: self.masked(site, context, context.cohort) for site in survivors},
            {site: self.confirmed(site, context, survivors) for site in survivors},
            self.time(),
        )

    def round(self, number, purpose="train", dropped=()):
        self.consortium.now += 60
        return self.log.append(self.round_leaf(number, purpose, dropped))

    def open_round(self, number):
        """A round whose updates the server sees."""
        self.consortium.now += 60
        context = self.context(number)
        updates = {}
        for site in context.cohort:
            body = {"report": {"epsilon": None, "delta": None}}
            parts = {"update": Part.of(site.encode())}
            signer = self.consortium.signers[site]
            updates[site] = seal(signer, "trained", context.sha256(), 2, body, parts).to_bytes()
        leaf = leaves.open_round_leaf(
            context, context.cohort, digest(f"model {number}"), updates, self.time()
        )
        return self.log.append(leaf)


def usual_run(folder, rounds=3):
    """A run with a drop-out, an evaluation, an attempt given up and a resumption."""
    run = AuditedRun(folder)
    run.start()
    for number in range(1, rounds + 1):
        run.round(number, dropped=("west",) if number == 2 else ())
    run.round(rounds, "evaluate")
    run.log.append(leaves.abandoned_leaf(run.context(rounds + 1), "too few sites", run.time()))
    run.log.append(leaves.resumed_leaf(RUN, rounds - 1, digest(f"model {rounds - 1}"), run.time()))
    run.round(rounds)
    return run


def copy_of(folder, target):
    return shutil.copytree(folder, target)
