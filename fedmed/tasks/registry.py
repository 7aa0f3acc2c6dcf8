"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from fedmed.configuration.groups import TaskConfig
from fedmed.errors import ConfigurationError
from fedmed.tasks.base import Task
from fedmed.tasks.classification.task import Classification

TASKS: dict[str, Callable[[TaskConfig], Task]] = {"classification": Classification}


def build_task(config: TaskConfig) -> Task:
    """Return the task of a configuration.

    Raises:
        ConfigurationError: if there is no task of that name.
    """
    if config.name not in TASKS:
        raise ConfigurationError(f"task.name={config.name}: choose one of {', '.join(TASKS)}.")
    return TASKS[config.name](config)
