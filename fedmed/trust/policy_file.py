"""The file of a site's policy: YAML, read once at start.

A key that it does not name has the default of :class:`~fedmed.trust.policy.SitePolicy`.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedmed.configuration.schema import open_schema
from fedmed.errors import ConfigurationError
from fedmed.trust.policy import SitePolicy

_MAX_FILE_BYTES = 64 * 1024


def read_policy(path: Path | None) -> SitePolicy:
    """Read a policy file; without a path, return the defaults.

    Raises:
        ConfigurationError: the file is missing, can be changed by everybody, is no YAML, or has
            an unknown key (the message has the nearest right one) or a value of a wrong type or
            out of range.
    """
    if path is None:
        return SitePolicy()
    try:
        return _parse(_read(path))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path.name}: {error}") from error


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"the policy cannot be read ({error.strerror}).") from error
    if mode & stat.S_IWOTH:
        raise ConfigurationError(
            f"everybody on this machine can change the policy; run: chmod o-w {path.name}"
        )
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"the policy is longer than {_MAX_FILE_BYTES} bytes.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError("the policy is no text in UTF-8.") from error


def _parse(text: str) -> SitePolicy:
    # OmegaConf resolves "${...}" from the environment; a policy says what it says.
    if "${" in text:
        raise ConfigurationError("write values; ${...} is not read in a policy.")
    try:
        loaded = OmegaConf.create(text)
        if not isinstance(loaded, DictConfig):
            raise ConfigurationError("write one key: value on each line.")
        _check_keys(str(key) for key in loaded)
        policy = OmegaConf.to_object(OmegaConf.merge(open_schema(SitePolicy), loaded))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the policy"
        raise ConfigurationError(f"{key}: {str(error).strip().splitlines()[0]}") from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1})"
        raise ConfigurationError(f"the policy is no YAML{where}.") from error
    if not isinstance(policy, SitePolicy):  # pragma: no cover - OmegaConf's contract
        raise TypeError("expected SitePolicy")
    policy.validate()
    return policy


def _check_keys(given: Iterable[str]) -> None:
    known = [entry.name for entry in fields(SitePolicy)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"The keys are {', '.join(known)}."
            raise ConfigurationError(f"there is no key {key}. {hint}")
