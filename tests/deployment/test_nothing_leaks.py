"""Nothing of an image or a patient leaves a site: every byte is looked at that crosses the wire.

Four sites train as real processes over mutual TLS. Their archives are full of a secret pattern
and of marked identities. Requests and answers are recorded in clear behind the server's TLS, the
ciphertext in a proxy, and all that the server writes is read. The same search finds planted leaks.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
import pytest
from connect_proxy import ConnectProxy
from deployed import PLAN, clients, start_client
from leak_search import LeakSearch, row_windows, spellings
from PIL import Image

import fedmed.commands.server
from clients.site import Site
from fedmed.cli import main
from fedmed.configuration import DataConfig, Plan, PreprocessingConfig, SiteConfig
from fedmed.configuration.groups import DataSource
from fedmed.data.phantom import write_archives
from fedmed.data.sources import site_sources
from fedmed.federation.records import Request
from server.superlink import SuperLinkServer

pytestmark = pytest.mark.slow

SITES = ("alder", "birch", "cedar", "dogwood")
MARKER = "Zq7XkVw9Lr3T"
"""In every identifier: name, number, accession number, birth date's place, manifest."""
PATTERN = random.Random(7).randbytes(48)
"""In every image: the values of 48 pixels, of which eight in a row are looked for."""


# --- archives -----------------------------------------------------------------------------------


def _mark(path: Path, patient: str) -> None:
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress()
    pixels = dataset.pixel_array.copy()
    pixels[4:8, 10:58] = np.frombuffer(PATTERN, np.uint8).astype(pixels.dtype) * 16
    dataset.PixelData = pixels.tobytes()
    dataset.PatientName = f"{MARKER}^{MARKER}{patient}"
    dataset.PatientID = f"{MARKER}-ID-{patient}"
    dataset.AccessionNumber = f"{MARKER}{patient[-4:]}"
    dataset.ReferringPhysicianName = f"{MARKER}^Doctor"
    dataset.InstitutionName = f"{MARKER} Hospital"
    dataset.PatientBirthDate = "19450203"
    dataset.StudyDescription = f"{MARKER} study"
    dataset.save_as(path)


def _to_png(path: Path) -> str:
    pixels = pydicom.dcmread(path).pixel_array
    grey = (pixels // 16).astype(np.uint8)
    Image.fromarray(grey).save(path.with_suffix(".png"))
    path.unlink()
    return f"images/{path.stem}.png"


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Path:
    """Archives whose every image and identity is marked; DICOM, PNG, and one broken file a site."""
    root = tmp_path_factory.mktemp("marked")
    write_archives(root, sites=4, patients=12, seed=1, workers=1)
    for site in SITES:
        manifest = root / site / "manifest.csv"
        with manifest.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for number, row in enumerate(rows):
            patient = row["patient_id"].rpartition("-")[2]
            _mark(root / site / row["image"], patient)
            row["patient_id"] = f"{MARKER}-ID-{patient}"
            if number % 3 == 0:
                row["image"] = _to_png(root / site / row["image"])
        (root / site / rows[1]["image"]).write_bytes(f"{MARKER} is no image".encode() * 20)
        with manifest.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root


def preprocessed(root: Path, state: Path) -> np.ndarray:
    """Return all images ``[n, c, h, w]`` as a site's training sees them."""
    loaders = site_sources(DataConfig(source=DataSource.manifest, root=str(root)))
    request = Request("run", 0, Plan(preprocessing=PreprocessingConfig(size=32)).to_json())
    found = []
    for name, load in loaders.items():
        cohort = Site(SiteConfig(name=name), load, state / name).cohort(request)
        found += [part.images.numpy() for part in cohort.splits.values() if len(part)]
    return np.concatenate(found)


@pytest.fixture(scope="module")
def search(marked, tmp_path_factory) -> LeakSearch:
    values = np.frombuffer(PATTERN, np.uint8)
    stored = (values, values.astype("<u2") * 16, values.astype(">u2") * 16, values.astype("<f4"))
    pieces = [
        piece
        for array in stored
        for start in range(len(values) - 16)
        for piece in spellings(array[start : start + 16].tobytes())
    ]
    rows = list(row_windows(preprocessed(marked, tmp_path_factory.mktemp("state"))))
    assert len(rows) > 5 * 1000
    found = LeakSearch({"marker": spellings(MARKER.encode()), "pixels": pieces, "rows": rows})
    # Control: what lies in the archives is found there.
    dicom = next((marked / "alder" / "images").glob("*.dcm"))
    assert found.found_in(dicom.read_bytes()) == {"marker", "pixels"}
    png = next((marked / "alder" / "images").glob("*.png"))
    assert found.found_in(png.read_bytes()) == {"pixels"}
    return found


# --- records ------------------------------------------------------------------------------------


@dataclass
class Wire:
    """All that crossed the server's border, in clear, by request."""

    exchanges: list[bytearray] = field(default_factory=list)
    ciphertext: bytearray = field(default_factory=bytearray)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def recorded(self, application):
        async def record(scope, receive, send):
            asked, answered = bytearray(repr(scope.get("path")).encode()), bytearray()
            for name, value in scope.get("headers", ()):
                asked += b"\n" + name + b": " + value
            asked += b"\n\n"

            async def received():
                event = await receive()
                asked.extend(event.get("body", b""))
                return event

            async def sent(event):
                for name, value in event.get("headers", ()):
                    answered.extend(name + b": " + value + b"\n")
                answered.extend(event.get("body", b""))
                await send(event)

            try:
                await application(scope, received, sent)
            finally:
                with self.lock:
                    self.exchanges += [asked, answered]

        return record


class RecordingProxy(ConnectProxy):
    """Keeps the ciphertext of both directions."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def _tunnel(self, client):
        try:
            super()._tunnel(client)
        except ConnectionRefusedError:  # sites ask before the server is there
            client.close()

    def _pump(self, source, sink, up):
        record, own = self._wire, bytearray()

        class Tee:
            def recv(self, count):
                piece = source.recv(count)
                own.extend(piece)
                return piece

            def shutdown(self, how):
                source.shutdown(how)

            def close(self):
                source.close()

        super()._pump(Tee(), sink, up)
        with contextlib.suppress(KeyError), self._lock:
            self._open.discard(source)
        with record.lock:
            record.ciphertext += own


class RecordedServer(SuperLinkServer):
    """The real server, with its whole application, gateway included, behind a recorder."""

    wire: Wire

    def __init__(self, application, context, **settings):
        super().__init__(application, context, **settings)
        config = self._server.config
        config.app = self.wire.recorded(config.app)


@dataclass(frozen=True)
class Recorded:
    """What a federation left behind."""

    code: int
    wire: Wire
    server: Path
    sites: Path
    output: str


def federate(folder: Path, marked: Path, port: int, monkeypatch, plan, **environment) -> Recorded:
    """Run a server in this process and the sites in theirs, and record everything."""
    server, sites = folder / "server-machine", folder / "sites"
    for one in (server, sites):
        one.mkdir()
    assert main(["pki", "demo", str(folder / "pki"), "--sites", *SITES]) == 0
    (folder / "pki" / "server").rename(server / "credentials")
    (folder / "pki").rename(sites / "certificates")
    wire = Wire()
    monkeypatch.setattr(RecordedServer, "wire", wire, raising=False)
    monkeypatch.setattr(fedmed.commands.server, "SuperLinkServer", RecordedServer)
    monkeypatch.chdir(server)
    with RecordingProxy(wire) as proxy, clients(sites, marked, port) as started:
        for name in SITES:
            started[name] = start_client(
                sites, marked, port, name, f"link.proxy={proxy.url}", **environment
            )
        code = main([
            "server", f"link.address=127.0.0.1:{port}", "link.credentials=credentials",
            "tracking.folder=out", *plan,
        ])  # fmt: skip
        for process in started.values():
            process.stop()
        output = "\n".join(process.output for process in started.values())
    return Recorded(code, wire, server, sites, output)


def leaks(search: LeakSearch, recorded: Recorded) -> dict[str, set[str]]:
    """Return what is found where: on the wire, in the server's folder."""
    found = {
        "wire": set().union(*(search.found_in(bytes(one)) for one in recorded.wire.exchanges)),
        "ciphertext": search.found_in(bytes(recorded.wire.ciphertext)),
        "server": set(),
    }
    for path in recorded.server.rglob("*"):
        if path.is_file():
            found["server"] |= search.found_in(path.read_bytes())
            found["server"] |= search.found_in(str(path).encode())
    return {where: names for where, names in found.items() if names}


# --- the test and its control -------------------------------------------------------------------


def test_no_byte_of_an_image_or_an_identity_leaves_a_site(
    tmp_path, marked, search, port, monkeypatch, capfd
):
    recorded = federate(tmp_path, marked, port, monkeypatch, PLAN)
    printed = capfd.readouterr()
    assert recorded.code == 0, printed.err
    # All of it was recorded: the model went down and the updates came up, through the proxy.
    exchanged = sum(len(one) for one in recorded.wire.exchanges)
    assert exchanged > 100_000
    assert len(recorded.wire.ciphertext) > exchanged
    assert any(b"/v1/fleet/push-object" in one for one in recorded.wire.exchanges)
    files = [path for path in recorded.server.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".html", ".jsonl", ".json", ".log"}
    assert leaks(search, recorded) == {}
    assert search.found_in((printed.out + printed.err).encode()) == set()
    assert search.found_in(recorded.output.encode()) == set()
    # What the sites write for themselves names no patient either.
    for site in SITES:
        own = [path for path in (recorded.sites / "state" / site).rglob("*") if path.is_file()]
        assert {"egress.jsonl", "excluded.jsonl", "fedmed.log", "secagg.jsonl", "witness.json"} <= {
            path.name for path in own
        }
        for path in own:
            assert search.found_in(path.read_bytes()) == set(), path.name
        assert (recorded.sites / "state" / site / "excluded.jsonl").read_text().count("\n") >= 1


# Each site leaks in another way, in spite of egress and masks.
PLANTED = '''
import base64, gzip, os
import clients.signed_site, clients.site
from flwr.app import Array, ArrayRecord, ConfigRecord
from fedmed.errors import ProtocolError

site, secret = os.environ.get("FEDMED_TEST_LEAK", ""), base64.b64decode(os.environ["SECRET"])
_pack, _train, _calls = clients.signed_site.pack_message, clients.site.Site.train, []

def leaking(header, parts, *more):
    """A gate with a hole: something travels beside what was let out."""
    content = _pack(header, parts, *more)
    name = _calls[0].name if _calls else ""
    if name == "alder":
        content["more"] = ConfigRecord({"text": base64.b64encode(gzip.compress(secret)).decode()})
    if name == "birch":
        cohort = next(iter(_calls[0]._prepared.values())).cohort
        row = cohort.splits["train"].images[0].numpy()
        raw = row.astype("<f4").tobytes()
        content["more"] = ArrayRecord(
            {"row": Array(dtype="<f4", shape=row.shape, stype="fedmed.raw-le", data=raw)}
        )
    return content

def training(self, *arguments):
    """A refusal that quotes what it should not."""
    _calls.append(self)
    if self.name == "cedar":
        raise ProtocolError("patient " + secret.decode() + " cannot be read")
    return _train(self, *arguments)

clients.signed_site.pack_message = leaking
clients.site.Site.train = training
'''


def test_planted_leaks_are_found(tmp_path, marked, search, port, monkeypatch, capfd):
    hole = tmp_path / "hole"
    hole.mkdir()
    (hole / "sitecustomize.py").write_text(PLANTED)
    environment = {
        "PYTHONPATH": str(hole),
        "SECRET": base64.b64encode(MARKER.encode()).decode(),
    }
    plan = [*PLAN, "federation.rounds=1"]
    recorded = federate(tmp_path, marked, port, monkeypatch, plan, **environment)
    assert recorded.code == 0  # three of four sites are enough
    printed = capfd.readouterr()
    assert search.found_in((printed.out + printed.err).encode()) == {"marker"}
    found = leaks(search, recorded)
    assert found["wire"] == {"marker", "rows"}
    assert found["server"] == {"marker"}
    assert "ciphertext" not in found
    alone = [search.found_in(bytes(one)) for one in recorded.wire.exchanges]
    assert sum("rows" in names for names in alone) >= 1
    assert sum("marker" in names for names in alone) >= 2
    # The site's own log has the text of the refusal: the search of the logs finds it.
    log = recorded.sites / "state" / "cedar" / "fedmed.log"
    assert search.found_in(log.read_bytes()) == {"marker"}
