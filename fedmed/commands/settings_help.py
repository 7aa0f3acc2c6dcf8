"""``--help`` of the commands that are configured by Hydra."""

from __future__ import annotations

from fedmed.configuration.loading import compose_defaults, group_names

_TITLES = {
    "simulate": "a whole federation on this machine",
    "server": "the consortium's server",
    "client": "one hospital's client",
    "doctor": "is a hospital's client ready, and how fast will it be",
}
# The doctor takes the client's settings.
_CONFIGURATIONS = {"doctor": "client"}


def settings_help(command: str, examples: str) -> str:
    """Return the help page of a command: its groups, its keys with defaults, three examples."""
    composed = compose_defaults(_CONFIGURATIONS.get(command, command))
    lines = [f"usage: fedmed {command} [group=preset] [key=value] ...", "", _TITLES[command], ""]
    lines += ["examples:", examples, "", "groups and presets:"]
    groups = group_names()
    lines += [
        f"  {name:<14} {', '.join(groups[name])}"
        for name in groups
        if f"{name}." in "\n".join(composed)
    ]
    lines += ["", "keys and defaults (explained in fedmed/configuration/groups.py):"]
    lines += [f"  {line}" for line in composed]
    return "\n".join(lines)
