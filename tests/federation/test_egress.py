"""Only what the allow-list names leaves a site, and what left is written down."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from fedmed.errors import ProtocolError
from fedmed.federation.egress import Egress
from fedmed.federation.records import Joined, Refused, Trained

REPORT = Trained("cs", 3, 0.5, None, 0.1)
UPDATE = {"update": np.zeros(4, np.float32)}
SHAPES = {"update": (4,)}


@dataclass(frozen=True)
class Gossip(Trained):
    patients: str = "DOE^JANE"


def test_what_left_is_written_down_with_size_and_hash(tmp_path):
    egress = Egress(tmp_path / "egress.jsonl")
    egress.release(REPORT, UPDATE, SHAPES)
    egress.release(Joined("cs", 1, 1, 1, {}, None))
    first, second = map(json.loads, (tmp_path / "egress.jsonl").read_text().splitlines())
    assert (first["kind"], second["kind"]) == ("trained", "joined")
    assert first["bytes"] > 16  # the update alone
    assert second["bytes"] > 0
    assert len(first["sha256"]) == 64
    assert first["sha256"] != second["sha256"]


def test_a_field_that_is_not_on_the_list_stays(tmp_path):
    with pytest.raises(ProtocolError):
        Egress(tmp_path / "e").release(Gossip("cs", 3, 0.5, None, 0.1), UPDATE, SHAPES)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("reply", "arrays", "shapes"),
    [
        (REPORT, {"images": np.zeros((4, 64, 64), np.float32)}, SHAPES),
        (REPORT, {**UPDATE, "images": np.zeros(4, np.float32)}, SHAPES),
        (REPORT, {"update": np.zeros(5, np.float32)}, SHAPES),
        (REPORT, UPDATE, None),
        (Refused("cs", "DataError", "x"), UPDATE, SHAPES),
        (Joined("cs", 1, 1, 1, {}, None), UPDATE, SHAPES),
    ],
    ids=["other array", "one more array", "longer", "no plan", "refusal", "joining"],
)
def test_arrays_that_are_not_in_the_plan_stay(tmp_path, reply, arrays, shapes):
    egress = Egress(tmp_path / "egress.jsonl")
    with pytest.raises(ProtocolError):
        egress.release(reply, arrays, shapes)
    assert not (tmp_path / "egress.jsonl").exists()
    egress.release(REPORT, UPDATE, SHAPES)  # control
