"""The doctor finds what is wrong, says the way out, and is silent on patients."""

from __future__ import annotations

import csv
import json
import shutil
import socket
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import torch
from connect_proxy import ConnectProxy
from forged_certificates import consortium, expire_crl, other_authority, revoke_and_install

from fedmed.assurance.doctor import connection, connection_checks, round_time, site_checks
from fedmed.assurance.doctor import credential_checks as trust
from fedmed.assurance.doctor.check_result import State
from fedmed.assurance.doctor.connection import Greeting, ServerProbe, Upload
from fedmed.assurance.doctor.examination import Examination
from fedmed.assurance.doctor.machine_checks import check_device, check_disk
from fedmed.assurance.doctor.round_time import Payload, RoundTime
from fedmed.cli import main
from fedmed.configuration.commands import ClientSettings
from fedmed.configuration.groups import (
    DataConfig,
    DataSource,
    LinkConfig,
    ModelConfig,
    PreprocessingConfig,
    PrivacyConfig,
    SiteConfig,
    TrainingConfig,
    TransportConfig,
    TransportMode,
    Unit,
)
from fedmed.configuration.plan import Plan
from fedmed.errors import DataError, FederationError
from fedmed.federation.flower_link import SuperLink
from fedmed.federation.membership import Membership
from fedmed.federation.mutual_tls import server_context
from fedmed.models.registry import build_model
from fedmed.training.accounting import GaussianSteps
from fedmed.training.ledger import Ledger, Reservation
from fedmed.trust.credentials import load_credentials
from fedmed.trust.policy import SitePolicy
from server.admission import Admission
from server.superlink import SuperLinkServer

SITES = ("alder", "birch", "cedar")
SMALL = Plan(
    model=ModelConfig(width=4, stages=2),
    preprocessing=PreprocessingConfig(size=16),
    training=TrainingConfig(batch_size=4),
    transport=TransportConfig(mode=TransportMode.secagg),
)
PRIVATE = replace(SMALL, privacy=PrivacyConfig(enabled=True, target_epsilon=8.0))
PAYLOAD = Payload(parameters=1000, up=4_000_000, down=4_000_000)
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


# --- certificates and what the root has published ------------------------------------------------


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """A consortium's member folders, valid from now on; not to be changed."""
    folder = tmp_path_factory.mktemp("members")
    consortium(folder, SITES)
    return folder


@pytest.mark.parametrize(
    ("left", "state"),
    [
        (timedelta(days=31), State.ok),
        (timedelta(days=29), State.warning),
        (timedelta(seconds=1), State.warning),
        (timedelta(0), State.failed),
        (timedelta(days=-1), State.failed),
    ],
)
def test_a_certificate_is_to_be_renewed_a_month_ahead(members, left, state):
    certificate = load_credentials(members / "alder", None).tls_certificate
    result = trust.check_certificate(certificate, certificate.not_valid_after_utc - left)
    assert result.state == state
    assert ("fedmed pki rotate" in result.remedy) == (state != State.ok)


@pytest.mark.parametrize(
    ("left", "state"),
    [
        (timedelta(days=8), State.ok),
        (timedelta(days=6), State.warning),
        (timedelta(0), State.failed),
    ],
)
def test_a_revocation_list_is_to_be_renewed_a_week_ahead(members, left, state):
    crl = load_credentials(members / "alder", None).crl
    result = trust.check_revocation_list(crl, crl.next_update_utc - left)
    assert result.state == state


def test_credentials_are_those_of_this_site(members):
    own = load_credentials(members / "alder", None)
    assert trust.check_credentials(own, "alder").state == State.ok
    assert trust.check_credentials(own, "birch").state == State.failed
    server = load_credentials(members / "server", None)
    assert trust.check_credentials(server, "server").state == State.failed


def test_a_roster_needs_this_site_a_server_and_three_sites(members):
    roster = load_credentials(members / "alder", None).roster
    assert trust.check_roster(roster, "alder").state == State.ok
    assert trust.check_roster(roster, "elm").state == State.failed
    for gone, state in (("cedar", State.warning), ("server", State.failed)):
        left = tuple(member for member in roster.members if member.name != gone)
        assert trust.check_roster(replace(roster, members=left), "alder").state == state


# --- clock, bandwidth, machine -------------------------------------------------------------------


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("seconds", "state"),
    [(0, State.ok), (60, State.ok), (61, State.warning), (300, State.warning), (301, State.failed)],
)
def test_clocks_may_differ_by_five_minutes(sign, seconds, state):
    found = Greeting(0.1, NOW, NOW + timedelta(seconds=sign * seconds))
    result = connection_checks.check_clock(found)
    assert result.state == state
    assert str(seconds) in result.detail


def test_without_a_date_the_clock_is_not_measured():
    assert connection_checks.check_clock(Greeting(0.1, None, NOW)).state == State.not_measured


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("Tue, 24 Nov 2026 12:00:00 GMT", NOW),
        ("24.11.2026", None),
        ("", None),
        (None, None),
    ],
)
def test_dates_of_http_are_read(text, time):
    assert connection._http_date(text) == time


@pytest.mark.parametrize(
    ("rate", "state"),
    [(4_000_000 / 25, State.ok), (4_000_000 / 26, State.warning)],
)
def test_an_upload_should_take_a_quarter_of_the_deadline_at_most(rate, state):
    upload = Upload(size=1000, seconds=1000 / rate, round_trip=0.01)
    result = connection_checks.check_bandwidth(upload, PAYLOAD, deadline_seconds=100)
    assert result.state == state
    assert "4.0 MB" in result.detail


def test_a_bandwidth_that_was_not_measured_is_not_made_up():
    result = connection_checks.check_bandwidth(None, PAYLOAD, 100)
    assert result.state == State.not_measured


@pytest.mark.parametrize(
    ("free", "state"),
    [
        (100 * 2**20 + 3_999_999, State.failed),
        (2**30, State.warning),
        (2**30 + 16_000_000, State.ok),
    ],
)
def test_free_space_is_compared_with_the_model(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _folder: shutil._ntuple_diskusage(2**40, 0, free)
    )
    assert check_disk(tmp_path / "state" / "alder", PAYLOAD).state == state
    assert not (tmp_path / "state").exists()


def test_a_state_folder_that_cannot_be_made_is_found(tmp_path):
    (tmp_path / "state").write_text("a file in the way")
    result = check_disk(tmp_path / "state" / "alder", PAYLOAD)
    assert result.state == State.failed
    assert str(tmp_path) not in result.detail


def test_the_device_is_one_that_torch_has():
    assert check_device("cpu", 1).state == State.ok
    assert check_device("cuda:99", 1).state == State.failed
    assert check_device("cpu", 10_000).state == State.warning
    assert ("no GPU" in check_device("auto", 1).detail) != torch.cuda.is_available()


# --- the site's own files ------------------------------------------------------------------------


def manifest_rows(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_manifest(folder, rows):
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def archive(archives, tmp_path):
    """One hospital's archive, to be spoilt."""
    shutil.copytree(archives / "alder", tmp_path / "data" / "alder")
    return tmp_path / "data" / "alder"


def test_a_manifest_is_counted(archives):
    folder = site_checks.archive_folder(archives, "Alder")
    rows = [row for row in manifest_rows(folder) if row.get("consent", "yes") in ("", "yes")]
    rows = [row for row in rows if row["label"]]
    count = site_checks.count_archive(folder)
    broken = sum(count.left_out.values())
    assert count.images + broken == len(manifest_rows(folder))
    assert count.images <= len(rows)
    assert count.patients <= len({row["patient_id"] for row in rows})


def test_what_is_left_out_is_counted_by_reason_and_names_nobody(archive):
    before = site_checks.count_archive(archive)
    rows = manifest_rows(archive)
    for row in rows:
        row["patient_id"] = "DOE^JANE-" + row["patient_id"]
        row["consent"] = "yes"
    rows[0]["consent"] = "withdrawn"
    rows[1]["image"] = "images/DOE^JANE.png"
    write_manifest(archive, rows)
    count = site_checks.count_archive(archive)
    assert count.left_out["no consent"] == len(rows) - sum(r["consent"] == "yes" for r in rows)
    assert count.left_out[site_checks.MISSING] == before.left_out.get(site_checks.MISSING, 0) + 1
    result = site_checks.check_manifest(count)
    assert result.state == State.warning
    assert "JANE" not in result.detail + result.remedy


@pytest.mark.parametrize(
    ("count", "state"),
    [
        (site_checks.ArchiveCount(9, 3, {}), State.ok),
        (site_checks.ArchiveCount(9, 3, {"no consent": 5}), State.ok),
        (site_checks.ArchiveCount(9, 3, {"bad row": 1}), State.warning),
        (site_checks.ArchiveCount(0, 0, {"no consent": 5}), State.failed),
    ],
)
def test_withdrawn_consent_is_no_fault_and_an_empty_archive_is(count, state):
    assert site_checks.check_manifest(count).state == state


def test_an_archive_that_is_not_there_is_told_without_its_path(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as caught:
            site_checks.archive_folder(root, "alder")
        assert str(tmp_path) not in str(caught.value)


def reserve(state, rounds, noise=1.0):
    ledger = Ledger(state / "ledger.jsonl")
    for number in range(1, rounds + 1):
        reservation = Reservation(
            run="run", round=number, steps=GaussianSteps(noise, 0.5, 10), site="alder",
            unit=Unit.patient,
        )  # fmt: skip
        ledger.reserve(reservation, delta=1e-5, max_epsilon=None)
    return ledger.epsilon("main", Unit.patient, 1e-5)


def test_a_ledger_tells_what_remains(tmp_path):
    spent = reserve(tmp_path, 1)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    states = {}
    for factor in (2.0, 1.05, 1.0, 0.5):
        site = SiteConfig(name="alder", max_epsilon=factor * spent)
        result = site_checks.check_ledger(tmp_path, site, SitePolicy())
        states[factor] = result.state
        assert f"epsilon {spent:.3f}" in result.detail
    assert states == {
        2.0: State.ok, 1.05: State.warning, 1.0: State.failed, 0.5: State.failed,
    }  # fmt: skip
    # The smaller of the two limits holds, whichever it is.
    strict = SitePolicy(max_epsilon=0.5 * spent)
    assert site_checks.check_ledger(tmp_path, SiteConfig(), strict).state == State.failed
    unlimited = SiteConfig(max_epsilon=None)
    assert site_checks.check_ledger(tmp_path, unlimited, None).state == State.ok
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_a_ledger_that_is_not_there_yet_is_in_order_and_a_damaged_one_is_not(tmp_path):
    assert site_checks.check_ledger(tmp_path, SiteConfig(), None).state == State.ok
    assert not list(tmp_path.iterdir())
    (tmp_path / "ledger.jsonl").write_text("{}\n")
    assert site_checks.check_ledger(tmp_path, SiteConfig(), None).state == State.failed


def test_a_policy_that_lets_updates_leave_in_plain_is_warned_of():
    assert site_checks.check_policy(SitePolicy(), False).state == State.ok
    plain = SitePolicy(transports=["secagg", "plain"])
    assert site_checks.check_policy(plain, True).state == State.warning


def test_a_plan_is_held_against_the_policy():
    def check(plan, sites=3):
        return site_checks.check_plan_allowed(plan, SitePolicy(), "server", sites, NOW)

    assert check(SMALL).state == State.ok
    plain = replace(SMALL, transport=TransportConfig(mode=TransportMode.plain))
    assert check(plain).state == State.warning
    assert check(SMALL, sites=2).state == State.warning


# --- how long a round takes ----------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "width"), [(32, 4), (16, 2)])
def test_the_payload_is_that_of_the_model(bits, width):
    plan = replace(SMALL, transport=TransportConfig(mode=TransportMode.secagg, bits=bits))
    model = build_model(plan.model, channels=1, outputs=1, seed=0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    payload = round_time.payload_of(plan)
    assert payload.parameters == parameters
    assert payload.down == 4 * parameters
    assert width * parameters < payload.up <= width * parameters + 2**16


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on two seconds each time it is looked at."""

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls):
            cls.now += 2.0
            return cls.now

    monkeypatch.setattr(round_time, "time", Clock)
    return Clock


@pytest.mark.parametrize(("plan", "images"), [(SMALL, 4), (PRIVATE, 64)])
def test_the_speed_is_that_of_steps_on_synthetic_images(ticking, plan, images, tmp_path):
    threads = torch.get_num_threads()
    seconds = round_time.seconds_per_image(plan, torch.device("cpu"), 1)
    assert seconds == pytest.approx(2.0 / images)
    assert torch.get_num_threads() == threads


def test_a_slow_machine_is_not_kept_busy(ticking, monkeypatch):
    monkeypatch.setattr(round_time, "_PATIENCE", 3.0)
    round_time.seconds_per_image(SMALL, torch.device("cpu"), 1)
    # Once at the start, and once after each of two steps: the second is past the patience.
    assert ticking.now == 2.0 * 3


@pytest.mark.parametrize(("size", "images"), [(64, 64), (256, 16), (4096, 1)])
def test_large_images_come_in_small_batches(size, images):
    plan = replace(PRIVATE, preprocessing=PreprocessingConfig(size=size))
    task = round_time.build_task(plan.task)
    assert len(round_time._synthetic_images(plan, task)) == images


@pytest.mark.parametrize(("seconds", "shown"), [(0.001, "1000 "), (0.5, "2 "), (6.0, "0.17 ")])
def test_slow_speeds_are_not_rounded_to_nothing(seconds, shown):
    assert round_time.check_speed(seconds, SMALL).detail.startswith(shown)


def test_a_round_is_training_and_transfer():
    plan = replace(SMALL, federation=replace(SMALL.federation, local_epochs=3.0))
    upload = Upload(size=1_000_000, seconds=1.0, round_trip=0.05)
    predicted = round_time.predict_round(plan, 100, 0.01, PAYLOAD, upload)
    assert predicted.training == pytest.approx(3.0)
    assert predicted.transfer == pytest.approx(8.0 + 40 * 0.05)
    assert round_time.predict_round(plan, 100, 0.01, PAYLOAD, None).transfer is None


@pytest.mark.parametrize(
    ("total", "state"), [(50.0, State.ok), (51.0, State.warning), (101.0, State.failed)]
)
def test_a_round_should_take_half_of_the_deadline_at_most(total, state):
    plan = replace(SMALL, federation=replace(SMALL.federation, deadline_seconds=100.0))
    assert round_time.check_round_time(RoundTime(total, None), plan).state == state
    assert round_time.check_round_time(None, plan).state == State.not_measured


# --- all of it, with a real server ---------------------------------------------------------------


@contextmanager
def serving(folder):
    """A server of the consortium in a folder; gives its address."""
    credentials = load_credentials(folder / "server", None)
    membership = Membership(credentials.folder, credentials.publication)
    with (
        SuperLink() as superlink,
        SuperLinkServer(
            superlink.asgi_app,
            server_context(credentials, membership),
            admission=Admission(membership, superlink.register_site),
        ) as server,
    ):
        yield server.address


def settings_for(folder, address, data, **link):
    return ClientSettings(
        data=DataConfig(source=DataSource.manifest, root=str(data)),
        site=SiteConfig(name="alder", state=str(folder / "state"), device="cpu", threads=1),
        link=LinkConfig(address=address, credentials=str(folder / "alder"), **link),
    )


def examined(settings, plan=SMALL):
    results = list(Examination(settings, plan, plan_given=True).results())
    assert all(result.remedy for result in results if result.state == State.failed)
    return {result.name: result for result in results}


def states(found, *names):
    return [found[name].state for name in names]


LINK = ("server reachable", "mutual TLS", "clock", "bandwidth")


def test_a_site_in_order_is_found_in_order(members, archives, tmp_path):
    with serving(members) as address:
        settings = replace(
            settings_for(members, address, archives),
            site=SiteConfig(name="alder", state=str(tmp_path / "state"), device="cpu", threads=1),
        )
        found = examined(settings)
    bad = {name: result for name, result in found.items() if result.state == State.failed}
    assert not bad
    assert states(found, *LINK) == 4 * [State.ok]
    assert states(found, "credentials", "certificate", "revocation list", "roster") == (
        4 * [State.ok]
    )
    assert states(found, "site policy", "plan", "privacy ledger") == 3 * [State.ok]
    assert found["round time"].state == State.ok
    assert "not measured" not in found["round time"].detail
    assert not (tmp_path / "state").exists()  # nothing is written


def test_the_way_through_a_proxy_is_the_one_that_is_measured(members, archives):
    with serving(members) as address, ConnectProxy("alder", "secret") as proxy:
        url = f"http://alder:secret@127.0.0.1:{proxy.port}"
        found = examined(settings_for(members, address, archives, proxy=url))
        assert states(found, *LINK) == 4 * [State.ok]
        assert "through the proxy" in found["mutual TLS"].detail
        assert set(proxy.tunnels) == {address}
        assert proxy.bytes_up > 256 * 2**10  # the trial upload went this way
        # Without the password the proxy lets nothing pass.
        wrong = url.replace("secret", "guess")
        found = examined(settings_for(members, address, archives, proxy=wrong))
        assert found["mutual TLS"].state == State.failed
        assert "link.proxy" in found["mutual TLS"].detail
        told = json.dumps([[r.detail, r.remedy] for r in found.values()])
        assert "secret" not in told
        assert "guess" not in told


def test_a_server_that_is_not_there_is_told_from_one_that_refuses(members, archives):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    found = examined(settings_for(members, address, archives))
    assert states(found, *LINK) == [State.failed, *3 * [State.not_measured]]
    assert "firewall" in found["server reachable"].remedy
    assert found["credentials"].state == State.ok
    assert "transfer not measured" in found["round time"].detail


def test_an_unknown_name_and_a_malformed_address_are_told_apart(members, archives, monkeypatch):
    def unknown(*_arguments, **_settings):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    result = connection_checks.check_reachable("fl.example.org:8443", None)
    assert "name" in result.detail
    assert "fl.example.org:8443" in result.detail
    result = connection_checks.check_reachable("fl.example.org", None)
    assert "HOST:PORT" in result.detail
    result = connection_checks.check_reachable("a.example.org:1", "socks5://b.example.org:1")
    assert "link.proxy" in result.detail


def test_a_proxy_in_the_environment_alone_is_pointed_out(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    for name in connection_checks._PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert "link.proxy" not in connection_checks.check_reachable(address, None).remedy
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example.org:3128")
    remedy = connection_checks.check_reachable(address, None).remedy
    assert "link.proxy" in remedy
    assert "secret" not in remedy


def test_a_site_that_the_server_holds_for_revoked_is_told_so(tmp_path, archives):
    authority = consortium(tmp_path, SITES)
    revoke_and_install(authority, "alder", tmp_path / "server")
    with serving(tmp_path) as address:
        found = examined(settings_for(tmp_path, address, archives))
        assert states(found, *LINK) == [
            State.ok, State.failed, State.not_measured, State.not_measured,
        ]  # fmt: skip
        # The site's own list is older and does not know yet.
        assert found["credentials"].state == State.ok
        other = settings_for(tmp_path, address, archives)
        other = replace(
            other,
            site=replace(other.site, name="birch"),
            link=replace(other.link, credentials=str(tmp_path / "birch")),
        )
        assert states(examined(other), *LINK) == 4 * [State.ok]  # control


def test_a_server_of_another_root_gets_no_upload(tmp_path, archives, monkeypatch):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    consortium(ours, SITES)
    consortium(theirs, SITES)
    uploads = []
    monkeypatch.setattr(ServerProbe, "upload", lambda _self: uploads.append(1))
    with serving(theirs) as address:
        found = examined(settings_for(ours, address, archives))
    assert found["mutual TLS"].state == State.failed
    assert not uploads


@pytest.mark.parametrize("fault", ["list", "mode", "signer", "missing"])
def test_credentials_that_do_not_hold_stop_what_needs_them_only(tmp_path, archives, fault):
    authority = consortium(tmp_path, SITES)
    folder = tmp_path / "alder"
    with serving(tmp_path) as address:
        settings = settings_for(tmp_path, address, archives)
        if fault == "list":
            expire_crl(authority, folder)
        elif fault == "mode":
            (folder / "tls.key").chmod(0o644)
        elif fault == "signer":
            other_authority(tmp_path / "other", folder)
        else:
            (folder / "roster.json").unlink()
        found = examined(settings)
    assert found["credentials"].state == State.failed
    assert str(tmp_path) not in found["credentials"].detail
    assert states(found, *LINK) == [State.ok, *3 * [State.not_measured]]
    assert found["manifest"].state != State.failed
    assert found["round time"].state == State.ok


def test_the_credentials_of_another_site_are_not_used(members, archives):
    with serving(members) as address:
        settings = settings_for(members, address, archives)
        other = replace(settings, site=replace(settings.site, name="birch"))
        found = examined(other)
    assert found["credentials"].state == State.failed
    assert "certificate" not in found
    assert states(found, *LINK) == [State.ok, *3 * [State.not_measured]]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(429),
        httpx.Response(413),
        httpx.Response(503),
        httpx.Response(403, headers={"fedmed-refusal": "certificate"}),
    ],
    ids=["busy", "too large", "ill", "refused"],
)
def test_a_server_that_takes_no_body_is_not_measured(members, answer):
    with (
        serving(members) as address,
        ServerProbe(address, load_credentials(members / "alder", None)) as probe,
    ):
        assert probe.upload() is not None  # control
        probe._ask = lambda _path, _body: (answer, 0.1)
        assert probe.upload() is None
        with pytest.raises(FederationError):
            probe.greet()


# --- the command ---------------------------------------------------------------------------------


def words(folder, address, data, *more):
    return [
        "doctor", "site=alder", f"data.root='{data}'", f"site.state='{folder / 'state'}'",
        f"link.address='{address}'", f"link.credentials='{folder / 'alder'}'",
        "site.device=cpu", "site.threads=1", "model=residual_cnn_small", "model.width=4",
        "preprocessing.size=16", "privacy=off", *more,
    ]  # fmt: skip


def test_the_command_prints_a_table_and_fails_if_a_check_does(
    members, archives, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "160")
    with serving(members) as address:
        assert main(words(members, address, archives)) == 0
        printed = capsys.readouterr().out
        assert "mutual TLS" in printed
        assert "round time" in printed
        assert "0 failed" not in printed
    assert main(words(members, address, archives)) == 1
    assert "failed" in capsys.readouterr().out


def test_settings_that_are_wrong_are_told_before_any_check(capsys):
    assert main(["doctor"]) == 2
    assert main(["doctor", "site=alder", "data.root=/data", "link.adress=x"]) == 2
    assert "link.address" in capsys.readouterr().err
    assert main(["doctor", "site=alder", "data.root=/data", "model.widht=8"]) == 2
    assert "model.width" in capsys.readouterr().err


def test_the_help_page_has_the_settings_of_the_client(capsys):
    assert main(["doctor", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "fedmed doctor site=cs" in printed
    assert "link.address" in printed
