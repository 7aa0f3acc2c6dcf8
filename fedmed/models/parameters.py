"""A network's weights as one flat vector with a declared layout."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmed.errors import ProtocolError

FloatVector = NDArray[np.float32]


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the weights, in the order in which they stand in the flat vector.

    Every floating-point entry of the state dict counts, so that running statistics, where a
    network has them, are aggregated like weights.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, model: nn.Module) -> ParameterLayout:
        """Read the layout off a network."""
        return cls(
            tuple(
                (name, tuple(value.shape))
                for name, value in model.state_dict().items()
                if value.is_floating_point()
            )
        )

    @property
    def size(self) -> int:
        """Number of values in the flat vector."""
        return sum(prod(shape) for _, shape in self.entries)

    def sha256(self) -> str:
        """Return the hex SHA-256 of the names and shapes: the architecture's fingerprint."""
        text = json.dumps(self.entries, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def split(self, vector: FloatVector) -> dict[str, FloatVector]:
        """Cut a flat vector into named arrays (views).

        Raises:
            ProtocolError: if the vector's length is not this layout's.
        """
        if vector.shape != (self.size,):
            raise ProtocolError(
                f"Weights of shape {vector.shape} came for a model of {self.size} parameters."
            )
        arrays, start = {}, 0
        for name, shape in self.entries:
            count = prod(shape)
            arrays[name] = vector[start : start + count].reshape(shape)
            start += count
        return arrays

    def join(self, arrays: dict[str, FloatVector]) -> FloatVector:
        """Inverse of :meth:`split`.

        Raises:
            ProtocolError: if names or shapes are not this layout's.
        """
        shapes = tuple((name, tuple(arrays[name].shape)) for name in arrays)
        if sorted(shapes) != sorted(self.entries):
            raise ProtocolError("The stored weights are of another architecture.")
        parts = [np.asarray(arrays[name], np.float32).ravel() for name, _ in self.entries]
        return np.concatenate(parts)


def flatten(model: nn.Module) -> FloatVector:
    """Copy a network's weights into a flat float32 vector ``[layout.size]``."""
    values = [v.detach() for v in model.state_dict().values() if v.is_floating_point()]
    return torch.cat([v.reshape(-1).float().cpu() for v in values]).numpy()


def trained_mask(model: nn.Module) -> NDArray[np.bool_]:
    """Return whether each value of the flat vector belongs to a trained parameter."""
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    return np.concatenate(
        [
            np.full(value.numel(), name in trained)
            for name, value in model.state_dict().items()
            if value.is_floating_point()
        ]
    )


def load_flat(model: nn.Module, vector: FloatVector) -> None:
    """Copy a flat vector into a network's weights.

    Raises:
        ProtocolError: if the length is wrong or a value is not finite.
    """
    if not np.isfinite(vector).all():
        raise ProtocolError("The weights hold NaN or infinity; the round that made them diverged.")
    arrays = ParameterLayout.of(model).split(vector)
    state = model.state_dict()
    with torch.no_grad():
        for name, array in arrays.items():
            state[name].copy_(torch.from_numpy(np.array(array)))
