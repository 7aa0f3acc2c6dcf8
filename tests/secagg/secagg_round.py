"""A small consortium and one round of secure aggregation, for the tests of the protocol."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedmed.secagg.journal import Journal
from fedmed.secagg.keys import EncryptionKeys
from fedmed.secagg.messages import Message
from fedmed.secagg.server import ServerSession
from fedmed.secagg.site import SiteSession
from fedmed.secagg.verification import join
from fedmed.trust.context import JOINING, TRAINING, RoundContext
from fedmed.trust.envelope import Envelope, Part
from fedmed.trust.roster import Member, MemberKeys, Role, Roster
from fedmed.trust.signatures import Signer

MODEL = hashlib.sha256(b"model").hexdigest()
SERVER = "server"
STEPS = ("prepare", "train", "confirm", "reveal")


class Consortium:
    """A server and sites ``a``, ``b``, ... that have joined a run."""

    def __init__(self, folder, sites=5):
        self.folder = folder
        self.names = tuple(f"site-{index:02d}" for index in range(sites))
        self.signers = {
            name: Signer(name, Ed25519PrivateKey.generate()) for name in (*self.names, SERVER)
        }
        members = tuple(self._member(name) for name in sorted(self.signers))
        self.roster = Roster("tests", 1, 0, members)
        self.joining = RoundContext(
            "run", JOINING, 0, 1, (), self.roster.sha256(), "", "", 0, 0, ""
        ).sha256()
        self.keys = {name: EncryptionKeys() for name in self.names}
        self.joined = {
            name: join(self.signers[name], self.joining, self.keys[name], {}).to_bytes()
            for name in self.names
        }

    def _member(self, name):
        public = self.signers[name].key.public_key().public_bytes_raw().hex()
        role = Role.server if name == SERVER else Role.site
        return Member(name, role, (MemberKeys(public, "00" * 32, 0, 2**40),))

    def context(self, cohort=None, **changes):
        context = RoundContext(
            run="run",
            purpose=TRAINING,
            round=1,
            attempt=1,
            cohort=tuple(cohort or self.names),
            roster=self.roster.sha256(),
            plan="ab" * 32,
            model=MODEL,
            weight_bound=100,
            log_size=0,
            log_root="",
        )
        return replace(context, **changes)

    def journal(self, name):
        return Journal(self.folder / name / "journal.jsonl")

    def site(self, name, context, kind=SiteSession, **settings):
        return kind(
            self.signers[name],
            self.roster,
            SERVER,
            self.keys[name],
            self.journal(name),
            context,
            self.joining,
            **settings,
        )

    def server(self, context, *, size=7, bits=32, counts=3, kind=ServerSession):
        return kind(
            self.signers[SERVER],
            self.roster,
            context,
            {name: self.joined[name] for name in context.cohort},
            self.joining,
            update_size=size,
            bits=bits,
            count_size=counts,
        )


class Exchange:
    """One attempt: the server, its sites, all that crossed the wire, and each step by itself.

    Args:
        consortium: who takes part.
        context: of the attempt.
        absent: for a step, the sites that do not answer it (nor any later one).
        kind: class of the sites' sessions.
        seed: of the updates.
    """

    def __init__(
        self,
        consortium,
        context=None,
        *,
        size=7,
        bits=32,
        counts=3,
        absent=None,
        kind=SiteSession,
        seed=0,
    ):
        self.consortium = consortium
        self.context = context or consortium.context()
        self.absent = {step: set(names) for step, names in (absent or {}).items()}
        self.server = consortium.server(self.context, size=size, bits=bits, counts=counts)
        self.sites = {
            name: consortium.site(name, self.context, kind) for name in self.context.cohort
        }
        generator = np.random.default_rng(seed)
        dtype = np.uint16 if bits == 16 else np.uint32
        self.updates = {
            name: generator.integers(0, 2**bits, size, dtype) for name in self.context.cohort
        }
        self.counts = {
            name: generator.integers(0, 2**64, counts, np.uint64) for name in self.context.cohort
        }
        self.requests: dict[str, dict[str, Message]] = {}
        self.replies: dict[str, dict[str, Message]] = {step: {} for step in STEPS}

    def answers(self, step, name):
        return not any(
            name in self.absent.get(earlier, ()) for earlier in STEPS[: STEPS.index(step) + 1]
        )

    def reply(self, step, name, request=None):
        """Let one site answer its request (or another one)."""
        envelope, parts = request or self.requests[step][name]
        envelope = Envelope.from_bytes(envelope.to_bytes())
        site = self.sites[name]
        if step == "train":
            site.open_training(envelope, parts, MODEL)
            update, counts = self.updates[name].copy(), self.counts[name].copy()
            answer = site.mask(update, counts)
            message = answer, {"update": update.tobytes(), "counts": counts.tobytes()}
        else:
            message = getattr(site, step)(envelope, parts)
        self.replies[step][name] = message
        return message

    def take(self, step, name, message=None):
        """Hand a site's answer (or another one) to the server."""
        envelope, parts = message or self.replies[step][name]
        envelope = Envelope.from_bytes(envelope.to_bytes())
        if step == "train":
            return self.server.take_masked(name, envelope, parts["update"], parts["counts"])
        past = {"prepare": "prepared", "confirm": "confirmed", "reveal": "revealed"}[step]
        return getattr(self.server, f"take_{past}")(name, envelope, parts)

    def ask(self, step):
        self.requests[step] = getattr(self.server, f"{step}_requests")()
        return self.requests[step]

    def step(self, step):
        """Take one step with all sites that answer it."""
        for name in self.ask(step):
            if self.answers(step, name):
                self.reply(step, name)
                self.take(step, name)

    def until(self, last):
        for step in STEPS[: STEPS.index(last) + 1]:
            self.step(step)
        return self

    def run(self):
        self.until("reveal")
        return self.server.finish()

    def expected(self, survivors):
        """Return the sums of updates and counts that numpy gives in the clear."""
        return tuple(
            np.sum([values[name] for name in survivors], axis=0, dtype=values[survivors[0]].dtype)
            for values in (self.updates, self.counts)
        )


def described(parts):
    return {name: Part.of(data) for name, data in parts.items()}
