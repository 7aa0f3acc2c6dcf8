"""The lines of ``checkpoints.jsonl``: a checkpoint for each leaf, and who cosigned it.

Lines are added at the end only: first a checkpoint, then cosignatures of it as they come in.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedmed.errors import ProtocolError
from fedmed.trust.audit.checkpoint import Checkpoint, read_hex
from fedmed.trust.canonical import Json, canonical_json, parse_canonical
from fedmed.trust.roster import MEMBER_NAME
from fedmed.trust.signatures import SIGNATURE_BYTES


def checkpoint_line(checkpoint: Checkpoint) -> bytes:
    """Return the line of a checkpoint, without the line break."""
    return canonical_json(checkpoint.to_json())


def cosignature_line(size: int, signatures: Mapping[str, bytes]) -> bytes:
    """Return the line of sites' cosignatures of the checkpoint of a size."""
    by_site: dict[str, Json] = {site: data.hex() for site, data in signatures.items()}
    return canonical_json({"cosignatures": by_site, "size": size})


class CheckpointLines:
    """What the lines of a log say; no signature is checked here.

    Args:
        origin: name of the log; None takes that of the first checkpoint.

    Attributes:
        checkpoints: of the sizes 1, 2, 3, ...
        cosignatures: by size and site.
    """

    def __init__(self, origin: str | None = None) -> None:
        self.origin = origin
        self.checkpoints: list[Checkpoint] = []
        self.cosignatures: dict[int, dict[str, bytes]] = {}

    def read(self, line: bytes) -> None:
        """Take the next line, without the line break.

        Raises:
            ProtocolError: if it is not of the agreed form, or not the one that comes next.
        """
        fields = parse_canonical(line)
        if isinstance(fields, Mapping) and "cosignatures" in fields:
            self._read_cosignatures(fields)
        else:
            self._read_checkpoint(Checkpoint.from_json(fields))

    def _read_checkpoint(self, checkpoint: Checkpoint) -> None:
        if self.origin is None:
            self.origin = checkpoint.origin
        if checkpoint.origin != self.origin:
            raise ProtocolError("A checkpoint is of another log.")
        if checkpoint.size != len(self.checkpoints) + 1:
            raise ProtocolError(
                f"A checkpoint of size {checkpoint.size} comes where that of size "
                f"{len(self.checkpoints) + 1} is due."
            )
        if self.checkpoints and checkpoint.time < self.checkpoints[-1].time:
            raise ProtocolError("A checkpoint is older than the one before it.")
        self.checkpoints.append(checkpoint)

    def _read_cosignatures(self, fields: Mapping[str, Json]) -> None:
        signatures = fields["cosignatures"]
        if set(fields) != {"cosignatures", "size"} or not isinstance(signatures, Mapping):
            raise ProtocolError("Cosignatures are not of the agreed form.")
        if not signatures or not self.checkpoints or fields["size"] != len(self.checkpoints):
            raise ProtocolError("Cosignatures do not follow the checkpoint that they are of.")
        known = self.cosignatures.setdefault(len(self.checkpoints), {})
        for site, text in signatures.items():
            if not MEMBER_NAME.fullmatch(site):
                raise ProtocolError("Cosignatures are not by sites.")
            if site in known:
                raise ProtocolError(f"The cosignature of {site!r} is there twice.")
            known[site] = read_hex(text, SIGNATURE_BYTES, f"The cosignature of {site!r}")
