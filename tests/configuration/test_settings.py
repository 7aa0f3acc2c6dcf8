"""A user's mistake is one or two lines that name the key and the right one."""

import re
import subprocess
import sys

import pytest

from fedmed.cli import main
from fedmed.configuration.commands import ClientSettings, ServerSettings, SimulateSettings
from fedmed.configuration.groups import DataSource
from fedmed.configuration.loading import load_settings, read_settings, write_settings
from fedmed.errors import ConfigurationError


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["federation.round=3"], r"no setting federation\.round\. Did you mean federation\.rounds"),
        (["rounds=3"], r"Did you mean federation\.rounds"),
        (["privacy=mediun"], r"privacy=mediun: choose one of .* Did you mean privacy=medium"),
        (["federation.rounds=many"], r"federation\.rounds: .*many"),
        (["simulation.compare=maybe"], r"simulation\.compare"),
        (["data.source=pacs"], r"data\.source"),
        (["rounds"], r"key=value"),
        (["federation.rounds=0"], r"federation\.rounds: choose 1"),
        (["federation.minimum_sites=9"], r"minimum_sites=9 is more than .*data\.sites=3"),
        (["privacy=high", "model.normalisation=batch"], r"model\.normalisation=group or privacy"),
        (["privacy=high", "privacy.noise_multiplier=1"], r"exactly one of"),
        (["data=manifest"], r"data\.root=DIR"),
        (["data=npz"], r"data\.path"),
        (["preprocessing.fractions=[0.5,0.5,0.5]"], r"preprocessing\.fractions"),
        (["transport=masked"], r"transport=masked: choose one of "),
        (["transport.bits=8"], r"transport\.bits=8"),
        (["federation.minimum_sites=2"], r"transport=sealed"),
        (["task.labels=[a,a]"], r"task\.labels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_names_the_key_and_the_way_out(overrides, expected, capsys):
    assert main(["simulate", *overrides]) == 2
    shown = capsys.readouterr().err.strip()
    assert re.search(expected, shown), shown
    assert len(shown.splitlines()) <= 2
    assert "Traceback" not in shown


def test_a_preset_of_privacy_brings_its_recipe_and_a_users_setting_wins():
    private = load_settings(SimulateSettings, "simulate", ["privacy=medium"])
    assert (private.privacy.target_epsilon, private.model.width) == (8.0, 8)
    plain = load_settings(SimulateSettings, "simulate", ["privacy=off"])
    assert (plain.privacy.enabled, plain.model.width) == (False, 16)
    own = load_settings(
        SimulateSettings,
        "simulate",
        ["privacy=medium", "model=residual_cnn", "training.optimizer=adamw"],
    )
    assert (own.model.width, own.training.optimizer) == (16, "adamw")


@pytest.mark.parametrize(
    ("preset", "epsilon"), [("low", 20.0), ("medium", 8.0), ("high", 3.0), ("off", None)]
)
def test_presets_differ_in_their_target(preset, epsilon):
    settings = load_settings(SimulateSettings, "simulate", [f"privacy={preset}"])
    assert settings.privacy.target_epsilon == epsilon
    assert settings.privacy.preset == preset


def test_a_site_is_named_without_a_preset_of_its_own():
    settings = load_settings(ClientSettings, "client", ["site=cs", "data.root=x"])
    assert settings.site.name == "cs"
    assert settings.link.credentials == "certificates/cs"
    with pytest.raises(ConfigurationError, match="site=NAME"):
        load_settings(ClientSettings, "client", ["data.root=x"])


def test_settings_survive_the_run_folder(tmp_path):
    settings = load_settings(
        SimulateSettings, "simulate", ["data=npz", "data.path=x.npz", "seed=4"]
    )
    write_settings(settings, tmp_path / "config.yaml")
    assert read_settings(SimulateSettings, tmp_path / "config.yaml") == settings
    assert settings.data.source is DataSource.npz


def test_server_and_simulation_make_the_same_plan_from_the_same_settings():
    words = ["federation.rounds=7", "privacy=high"]
    server = load_settings(ServerSettings, "server", words)
    simulation = load_settings(SimulateSettings, "simulate", words)
    assert server.plan() == simulation.plan()


@pytest.mark.parametrize("command", ["simulate", "server", "client"])
def test_help_shows_groups_and_three_examples(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    examples = shown.split("groups and presets:")[0].split("examples:")[1]
    assert len(re.findall(r"^  \S", examples, re.MULTILINE)) == 3
    assert ("link.address" in shown) is (command != "simulate")
    assert ("transport.mode" in shown) is (command != "client")


def test_the_commands_of_the_help_exist(capsys):
    assert main([]) == 0
    assert main(["--version"]) == 0
    assert main(["fly"]) == 1
    assert "--help" in capsys.readouterr().err


def test_no_telemetry_ever():
    program = (
        "import fedmed, os, flwr.app\n"
        "from flwr.supercore import telemetry\n"
        "assert os.environ['FLWR_TELEMETRY_ENABLED'] == '0'\n"
        "assert telemetry.FLWR_TELEMETRY_ENABLED == '0'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
