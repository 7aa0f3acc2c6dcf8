"""Compose settings with Hydra and explain a user's mistake in one or two lines."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from fedmed.configuration.schema import open_schema
from fedmed.errors import ConfigurationError


class Settings(Protocol):
    """A settings class of :mod:`fedmed.configuration.commands`."""

    def validate(self) -> None:
        """Raise ConfigurationError for an impossible combination."""


S = TypeVar("S", bound=Settings)


def load_settings(
    schema: type[S], config_name: str, overrides: Sequence[str], config_folder: Path | None = None
) -> S:
    """Compose ``conf/CONFIG_NAME.yaml`` with overrides and check it against its schema.

    Args:
        schema: settings class.
        config_name: ``simulate``, ``server`` or ``client``.
        overrides: Hydra overrides such as ``privacy=off`` or ``federation.rounds=5``.
        config_folder: a folder with presets of the user's own, searched besides ``conf``.

    Raises:
        ConfigurationError: naming the key, with the nearest right one.
    """
    extra = [f"hydra.searchpath=[file://{config_folder.resolve()}]"] if config_folder else []
    try:
        composed = _compose(config_name, [*_name_the_site(overrides), *extra])
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, config_name, overrides) from error
    return settings_from(schema, composed)


def settings_from(schema: type[S], composed: DictConfig) -> S:
    """Turn a composed or stored configuration into validated settings.

    Raises:
        ConfigurationError: naming the key that is unknown or of the wrong type.
    """
    try:
        OmegaConf.resolve(composed)
        merged = OmegaConf.merge(open_schema(schema), composed)
        settings = OmegaConf.to_object(merged)
    except ValidationError as error:
        raise ConfigurationError(f"{error.full_key}: {_first_line(error)}") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or ""
        raise ConfigurationError(f"{key}: {_first_line(error)}") from error
    if not isinstance(settings, schema):  # pragma: no cover - OmegaConf's contract
        raise TypeError(f"expected {schema.__name__}")
    settings.validate()
    return settings


def write_settings(settings: Settings, path: Path) -> None:
    """Write settings as YAML that :func:`read_settings` reads back."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(settings)), encoding="utf-8")


def read_settings(schema: type[S], path: Path) -> S:
    """Read settings that :func:`write_settings` wrote.

    Raises:
        ConfigurationError: if the file is missing or does not fit the schema.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path}: there is no such file; is this a run folder?")
    loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise ConfigurationError(f"{path}: not a mapping of settings.")
    return settings_from(schema, loaded)


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        return compose(config_name=config_name, overrides=list(overrides))


def _name_the_site(overrides: Sequence[str]) -> list[str]:
    """Let ``site=cs`` name the site when no preset ``site/cs.yaml`` is at hand."""
    presets = _group_options("site")
    return [
        f"site.name={override.removeprefix('site=')}"
        if override.startswith("site=") and override.removeprefix("site=") not in presets
        else override
        for override in overrides
    ]


def _group_options(group: str) -> list[str]:
    folder = conf_folder() / group
    return sorted(path.stem for path in folder.glob("*.yaml"))


def conf_folder() -> Path:
    """Return the installed folder of presets."""
    import conf  # noqa: PLC0415 - a package of YAML files, found where it was installed

    return Path(conf.__path__[0])


def group_names() -> dict[str, list[str]]:
    """Return every config group with its presets."""
    folders = sorted(path for path in conf_folder().iterdir() if path.is_dir())
    groups = {folder.name: _group_options(folder.name) for folder in folders}
    return {name: options for name, options in groups.items() if options}


def compose_defaults(config_name: str) -> list[str]:
    """Return ``key=value`` of every key of a command with its default."""
    composed = _compose(config_name, [])
    flat = OmegaConf.to_container(composed, resolve=False)
    return [f"{key}={_value_at(flat, key)}" for key in _flatten(composed)]


def _value_at(tree: object, key: str) -> str:
    for part in key.split("."):
        tree = tree[part] if isinstance(tree, dict) else None
    if isinstance(tree, bool) or tree is None:
        return {True: "true", False: "false", None: "null"}[tree]
    return str(tree)


def _known_keys(config_name: str) -> list[str]:
    composed = _compose(config_name, [])
    return [*_flatten(composed), *group_names()]


def _flatten(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        key = str(name)
        value = node._get_node(key)
        if isinstance(value, DictConfig):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _explain(error: Exception, config_name: str, overrides: Sequence[str]) -> ConfigurationError:
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return ConfigurationError(_unknown_key(match.group(1), config_name))
    if match := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        group, option = match.groups()
        options = _group_options(group)
        near = difflib.get_close_matches(option, options, n=1)
        hint = f" Did you mean {group}={near[0]}?" if near else ""
        return ConfigurationError(f"{group}={option}: choose one of {', '.join(options)}.{hint}")
    for override in overrides:
        if "=" not in override:
            return ConfigurationError(
                f"'{override}' is no setting; write key=value, as in federation.rounds=5"
            )
        key = override.split("=", 1)[0].lstrip("+~")
        if key in text:
            return ConfigurationError(f"{key}: {_first_line(error)}")
    return ConfigurationError(_first_line(error))


def _unknown_key(key: str, config_name: str) -> str:
    known = [name for name in _known_keys(config_name) if name != key]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        last = key.rsplit(".", 1)[-1]
        near = [k for k in known if k.rsplit(".", 1)[-1] == last][:1]
    hint = f" Did you mean {near[0]}?" if near else " See --help for the groups."
    return f"There is no setting {key}.{hint}"
