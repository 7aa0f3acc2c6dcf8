"""Messages that mean harm, at the border of the server and at that of a site."""

import json
import subprocess
import sys
from pathlib import Path

import hostile_border
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hostile_border import HEADERS, OBJECTS, SIGNATURE, SIGNED

import clients.site
from fedmed.cli import main
from fedmed.errors import ProtocolError
from fedmed.federation.channels import secagg
from fedmed.federation.flower_link.inflation import inflate_message
from fedmed.federation.records import RAW, SALT_BYTES, WEIGHTS
from fedmed.federation.wire import pack_message, unpack_message
from fedmed.trust.envelope import Part, seal
from fedmed.trust.signatures import Signer

MOST = 100 * 2**20
QUICK = [
    "model.width=4", "model.stages=2", "preprocessing.size=32", "federation.rounds=1",
    "federation.local_epochs=1", "simulation.workers=1", "site.threads=1", "privacy=off", "seed=3",
    "transport.attempts=1", "federation.evaluate_every=0", "tracking.report=false",
]  # fmt: skip


# --- what is no message ------------------------------------------------------------------------


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_is_none_is_a_protocol_error(case):
    with pytest.raises(ProtocolError):
        unpack_message(pack_message(SIGNATURE + HEADERS[case](), {}))


def good(parts):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    signer = Signer("a", Ed25519PrivateKey.generate())
    described = {name: Part.of(data) for name, data in parts.items()}
    return seal(signer, "joined", "0" * 64, 1, {}, described).to_bytes()


def flattened(content):
    hostile_border.set_task_identity()
    return hostile_border._flattened(Message(content, 1, "train"))


@pytest.mark.parametrize("case", OBJECTS)
def test_objects_that_make_no_message_are_a_protocol_error(case):
    hostile_border.set_task_identity()
    parts = {"one": b"1", "two": b"22"}
    message = Message(pack_message(good(parts), parts), 1, "train")
    # Control: as Flower takes it apart, it is a message with these parts.
    envelope, found = unpack_message(inflate_message(*flattened(message.content)).content)
    assert found == parts
    assert set(envelope.parts) == set(parts)
    root, contents = OBJECTS[case](message)
    with pytest.raises(ProtocolError):
        unpack_message(inflate_message(root, contents).content)


def records(**changes):
    content = RecordDict(dict(pack_message(good({"one": b"1"}), {"one": b"1"}).items()))
    for name, record in changes.items():
        content[name] = record
    return content


def part(dtype="|u1", stype=RAW, data=bytes(SALT_BYTES + 1), shape=(1,)):
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        records(envelope=MetricRecord({"bytes": 1})),
        records(envelope=ConfigRecord({"bytes": "text"})),
        records(envelope=ConfigRecord({"other": b"x" * 100})),
        records(envelope=ConfigRecord({"bytes": b""})),
        records(parts=ConfigRecord({"one": b"1"})),
        records(parts=ArrayRecord({})),
        records(parts=ArrayRecord({"one": part(), "more": part()})),
        records(parts=ArrayRecord({"other": part()})),
        records(parts=ArrayRecord({"one": part(dtype="|O")})),
        records(parts=ArrayRecord({"one": part(stype="numpy.ndarray")})),
        records(parts=ArrayRecord({"one": part(data=bytes(SALT_BYTES - 1))})),
        records(parts=ArrayRecord({"one": part(data=bytes(2**20 + SALT_BYTES + 1))})),
    ],
)
def test_records_of_another_form_are_a_protocol_error(content):
    assert unpack_message(records())[1] == {"one": b"1"}  # control
    with pytest.raises(ProtocolError):
        unpack_message(content)


def test_zeros_that_flower_keeps_once_still_arrive():
    """Large arrays of equal pieces are no attack: a layer that was never trained, say."""
    update = bytes(24 * 2**20)
    parts = {"update": update}
    root, contents = flattened(pack_message(good(parts), parts))
    assert sum(len(data) for data in contents.values()) < len(update)
    _, found = unpack_message(inflate_message(root, contents).content)
    assert found["update"] == update


@pytest.mark.slow
@pytest.mark.parametrize("border", ["server", "site"])
def test_nothing_crashes_a_border_or_makes_its_memory_grow(border, tmp_path):
    script = Path(hostile_border.__file__)
    words = [sys.executable, str(script), border, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    found = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"control", *HEADERS, *OBJECTS, *SIGNED}
    control = found.pop("control")
    assert control["result"] == "taken"
    assert control["grown"] > 2 * MOST * 0.9
    for case, line in found.items():
        refusal = {"server": "failed: ", "site": "refused: ProtocolError"}[border]
        assert line["result"].startswith((refusal, "ProtocolError: ")), (case, line)
        assert line["grown"] < MOST, (case, line)


# --- what is a message, with numbers that do harm ----------------------------------------------


def run(tmp_path, archives, *settings):
    code = main([
        "simulate", "data=manifest", f"data.root={archives}", f"tracking.folder={tmp_path}",
        *QUICK, *settings,
    ])  # fmt: skip
    folder = sorted(path.parent for path in tmp_path.glob("*/*/config.yaml"))[-1]
    return code, folder


def poisoned(monkeypatch, value, site="alder"):
    """Let one site's update hold a value."""
    train = clients.site.Site.train

    def hostile(self, *arguments):
        report, update = train(self, *arguments)
        if self.name == site:
            update = update.copy()
            update[0] = np.float32(value)
        return report, update

    monkeypatch.setattr(clients.site.Site, "train", hostile)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("transport", ["secagg", "sealed"])
def test_a_site_sends_no_update_with_nan_or_infinity(
    tmp_path, archives, monkeypatch, capsys, value, transport
):
    poisoned(monkeypatch, value)
    code, folder = run(tmp_path, archives, f"transport={transport}")
    assert code == 7
    text = " ".join(capsys.readouterr().err.split())
    assert "alder: refused: ProtocolError" in text
    sent = (folder / "sites" / "alder" / "egress.jsonl").read_text().splitlines()
    assert {json.loads(line)["kind"] for line in sent} <= {"joined", "prepared", "refused"}


@pytest.mark.slow
def test_the_server_takes_no_sealed_update_with_nan(tmp_path, archives, monkeypatch, capsys):
    """From a site whose own check is gone."""
    poisoned(monkeypatch, "nan")
    monkeypatch.setattr("clients.signed_site._demand_finite", lambda _update: None)
    code, _ = run(tmp_path, archives, "transport=sealed")
    assert code == 7
    text = " ".join(capsys.readouterr().err.split())
    assert "alder: failed" in text
    assert "NaN or infinity" in text


@pytest.mark.slow
@pytest.mark.parametrize("value", [1e9, -(2.0**31), 3e38])
def test_a_huge_number_is_clipped_to_the_bound_and_counted(tmp_path, archives, monkeypatch, value):
    from safetensors.numpy import load_file

    settings = ["transport.update_bound=0.5"]
    _, clean = run(tmp_path / "clean", archives, *settings)
    poisoned(monkeypatch, value)
    code, folder = run(tmp_path / "poisoned", archives, *settings)
    assert code == 0
    assert "were clipped" in (folder / "fedmed.log").read_text()
    assert "were clipped" not in (clean / "fedmed.log").read_text()
    weights, others = (load_file(one / "model.safetensors") for one in (folder, clean))
    moved = max(float(np.abs(weights[name] - others[name]).max()) for name in weights)
    assert 0.01 < moved <= 1.0  # from -bound to bound, times the site's share


HOSTILE_WEIGHTS = {
    "nan": lambda raw, size: ("<f4", (size,), RAW, raw[:-4] + np.float32("nan").tobytes()),
    "truncated": lambda raw, size: ("<f4", (size,), RAW, raw[:-4]),
    "longer": lambda raw, size: ("<f4", (size,), RAW, raw + b"\0\0\0\0"),
    "another dtype": lambda raw, size: ("<f8", (size,), RAW, raw),
    "objects": lambda raw, size: ("|O", (size,), RAW, raw),
    "numpy file": lambda raw, size: ("<f4", (size,), "numpy.ndarray", raw),
    "huge shape": lambda raw, size: ("<f4", (2**40, 2**20), RAW, raw),
    "negative shape": lambda raw, size: ("<f4", (-size,), RAW, raw),
    "another model": lambda raw, size: (
        "<f4",
        (size,),
        RAW,
        raw[:SALT_BYTES] + raw[SALT_BYTES:][::-1],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE_WEIGHTS)
def test_a_site_trains_on_no_other_weights_than_announced(
    tmp_path, archives, monkeypatch, capsys, case
):
    trained = []
    monkeypatch.setattr(clients.site.Site, "train", lambda *_: trained.append(1))
    honest = secagg.beside

    def hostile(arrays):
        array = honest(arrays)["arrays"][WEIGHTS]
        dtype, shape, stype, data = HOSTILE_WEIGHTS[case](array.data, arrays[WEIGHTS].size)
        content = RecordDict()
        content["arrays"] = ArrayRecord(
            {WEIGHTS: Array(dtype=dtype, shape=shape, stype=stype, data=data)}
        )
        return content

    monkeypatch.setattr(secagg, "beside", hostile)
    code, _ = run(tmp_path, archives)
    assert code == 7
    text = " ".join(capsys.readouterr().err.split())
    assert text.count("refused: ProtocolError") == 3
    assert not trained
