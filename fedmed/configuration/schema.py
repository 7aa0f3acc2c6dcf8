"""OmegaConf schemas of frozen dataclasses."""

from __future__ import annotations

from omegaconf import Container, DictConfig, OmegaConf


def open_schema(schema: type[object]) -> DictConfig:
    """Return the typed schema of a frozen dataclass, writable so that values can be merged in.

    OmegaConf marks every node of a frozen dataclass read-only; the objects made from the merged
    configuration are frozen all the same.
    """
    config = OmegaConf.structured(schema)
    _unlock(config)
    if not isinstance(config, DictConfig):  # pragma: no cover - OmegaConf's contract
        raise TypeError("a schema is a dataclass")
    return config


def _unlock(node: Container) -> None:
    OmegaConf.set_readonly(node, None)
    if isinstance(node, DictConfig):
        for key in node:
            child = node._get_node(key)
            if isinstance(child, Container):
                _unlock(child)
