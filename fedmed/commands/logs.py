"""Where log lines go: into a file, not over the progress bars."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OURS = ("fedmed", "clients", "server")


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write our log and Flower's warnings to a file while a command runs."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in (*_OURS, "flwr", "httpx", "uvicorn")]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if logger.name in _OURS else logging.WARNING)
    with warnings.catch_warnings():
        # Opacus and torch warn at every step of things that fedmed handles.
        warnings.filterwarnings("ignore", module="opacus.*")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        try:
            yield
        finally:
            for logger, level, propagate, handlers in before:
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)
            handler.close()
