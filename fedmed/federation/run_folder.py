"""The files of a run: rounds, checkpoints, model, summary (DESIGN section 5)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedmed.durable_files import replace_durably
from fedmed.errors import ConfigurationError
from fedmed.models.parameters import FloatVector, ParameterLayout

_STRATEGY_PREFIX = "strategy."


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands after a round.

    Attributes:
        run: identifier of the run.
        round: last finished round; 0 is the initial model.
        weights: global weights ``[parameters]``.
        strategy: the strategy's state.
        epsilons: last epsilon that each site reported.
        seconds: spent so far.
        traffic: payload bytes down and up so far.
    """

    run: str
    round: int
    weights: FloatVector
    strategy: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    epsilons: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    traffic: tuple[int, int] = (0, 0)


class RunFolder:
    """A run's folder.

    Args:
        path: the folder; made if needed.
        keep: number of newest checkpoints that stay.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self._keep = max(1, keep)
        self._checkpoints = path / "checkpoints"
        self._checkpoints.mkdir(parents=True, exist_ok=True)

    @classmethod
    def create(cls, parent: Path, keep: int = 2) -> RunFolder:
        """Make ``parent/<date>/<time>``, with a suffix where that is taken."""
        now = datetime.now()
        base = parent / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}"
        for attempt in range(1000):
            path = base if attempt == 0 else base.with_name(f"{base.name}-{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            return cls(path, keep)
        raise ConfigurationError(f"tracking.folder={parent}: no free name for a run folder.")

    def append_round(self, record: Mapping[str, object]) -> None:
        """Add a line to ``rounds.jsonl``."""
        with (self.path / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(record), sort_keys=True) + "\n")

    def amend_round(
        self, number: int, change: Callable[[Mapping[str, object]], Mapping[str, object]]
    ) -> Mapping[str, object] | None:
        """Write the line of a round anew, for what came to be known later.

        Args:
            number: of the round.
            change: from the line as it is to the line as it should be.

        Returns:
            The new line; None if there is no line of that round.
        """
        path = self.path / "rounds.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        amended: Mapping[str, object] | None = None
        for position, line in enumerate(lines):
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line torn by a kill
            if isinstance(record, dict) and record.get("round") == number:
                amended = change(record)
                lines[position] = json.dumps(_finite(amended), sort_keys=True)
        if amended is not None:
            write_atomically(path, "".join(line + "\n" for line in lines).encode())
        return amended

    def forget_rounds_after(self, number: int) -> None:
        """Drop lines of ``rounds.jsonl`` that a resumed run will write again."""
        path = self.path / "rounds.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line torn by a kill
            if isinstance(record, dict) and record.get("round", number + 1) <= number:
                kept.append(line)
        write_atomically(path, "".join(line + "\n" for line in kept).encode())

    def save_checkpoint(self, checkpoint: Checkpoint, layout: ParameterLayout) -> None:
        """Write a checkpoint, then drop the oldest ones."""
        tensors: dict[str, NDArray[np.float32] | NDArray[np.float64]] = {
            name: np.ascontiguousarray(array)
            for name, array in layout.split(checkpoint.weights).items()
        }
        for name, array in checkpoint.strategy.items():
            tensors[_STRATEGY_PREFIX + name] = np.ascontiguousarray(array)
        facts = {
            "run": checkpoint.run,
            "round": checkpoint.round,
            "epsilons": dict(checkpoint.epsilons),
            "seconds": checkpoint.seconds,
            "traffic": list(checkpoint.traffic),
        }
        data = save(tensors, metadata={"fedmed": json.dumps(facts, sort_keys=True)})
        name = f"round_{checkpoint.round:06d}.safetensors"
        write_atomically(self._checkpoints / name, data)
        for old in self._list()[: -self._keep]:
            old.unlink(missing_ok=True)

    def newest_checkpoint(self, layout: ParameterLayout) -> Checkpoint | None:
        """Return the newest readable checkpoint, or None where there is none.

        Raises:
            ProtocolError: if it is of another architecture.
            ConfigurationError: if it is damaged.
        """
        files = self._list()
        if not files:
            return None
        try:
            with safe_open(files[-1], framework="numpy") as stored:
                facts = json.loads(stored.metadata()["fedmed"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - safe_open has no __iter__
            state = {
                name.removeprefix(_STRATEGY_PREFIX): array
                for name, array in tensors.items()
                if name.startswith(_STRATEGY_PREFIX)
            }
            weights = {n: a for n, a in tensors.items() if not n.startswith(_STRATEGY_PREFIX)}
            return Checkpoint(
                run=str(facts["run"]),
                round=int(facts["round"]),
                weights=layout.join(weights),
                strategy=state,
                epsilons={str(k): float(v) for k, v in facts["epsilons"].items()},
                seconds=float(facts["seconds"]),
                traffic=(int(facts["traffic"][0]), int(facts["traffic"][1])),
            )
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"checkpoints/{files[-1].name} is damaged. Delete it to go on from the one before."
            ) from error

    def write_model(
        self, weights: FloatVector, layout: ParameterLayout, card: Mapping[str, object]
    ) -> None:
        """Write ``model.safetensors`` and ``model.json``, which holds its hash."""
        arrays = {name: np.ascontiguousarray(a) for name, a in layout.split(weights).items()}
        data = save(arrays)
        write_atomically(self.path / "model.safetensors", data)
        facts = {**card, "parameters": layout.size, "sha256": hashlib.sha256(data).hexdigest()}
        self.write_json("model.json", facts)

    def write_json(self, name: str, values: Mapping[str, object]) -> None:
        """Write a JSON file; NaN and infinity become null."""
        text = json.dumps(_finite(values), indent=2, sort_keys=True) + "\n"
        write_atomically(self.path / name, text.encode())

    def _list(self) -> list[Path]:
        pattern = re.compile(r"round_\d{6}\.safetensors")
        return sorted(p for p in self._checkpoints.iterdir() if pattern.fullmatch(p.name))


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a crash leaves either the old or the new one, whole."""
    replace_durably(path, data, 0o644)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
