"""The tensors of a checkpoint, read one by one, each for the module that it belongs to."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

Layer = Callable[[torch.Tensor], torch.Tensor]


class UnknownWeightsError(ValueError):
    """The checkpoint lacks tensors of the front end, or has others than it knows."""


class Weights:
    """Tensors by name, below a prefix.

    Args:
        tensors: of the checkpoint, by full name.
        prefix: of all names that are asked for.
        used: full names that have been asked for, shared by all scopes.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], prefix: str = "", used: set[str] | None = None) -> None:
        self._tensors, self._prefix = tensors, prefix
        self._used: set[str] = set() if used is None else used

    def scope(self, name: str) -> "Weights":
        """The tensors below ``name``."""
        return Weights(self._tensors, f"{self._prefix}{name}.", self._used)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self._prefix + name
        if name not in self._tensors:
            raise UnknownWeightsError(f"the checkpoint has no {name}")
        self._used.add(name)
        return self._tensors[name]

    def linear(self, name: str, scale: float = 1.0) -> Layer:
        """A linear layer (or a convolution of width 1) whose output is multiplied by ``scale``."""
        weight = scale * self[f"{name}.weight"].flatten(1)
        bias = scale * self[f"{name}.bias"] if f"{name}.bias" in self else None
        return partial(F.linear, weight=weight, bias=bias)

    def layer_norm(self, name: str, eps: float = 1e-5) -> Layer:
        """A layer normalisation over the last dimension."""
        weight, bias = self[f"{name}.weight"], self[f"{name}.bias"]
        return partial(F.layer_norm, normalized_shape=weight.shape, weight=weight, bias=bias, eps=eps)

    def check_all_used(self) -> None:
        """Raises UnknownWeightsError if there are tensors that nothing has asked for."""
        # BatchNorm's counter of training steps has no effect on its output.
        unused = [name for name in self._tensors.keys() - self._used if not name.endswith("num_batches_tracked")]
        if unused:
            raise UnknownWeightsError(f"the checkpoint has {len(unused)} unknown tensors, as {sorted(unused)[0]}")


def read_tensors(
    folder: Path, parts: tuple[str, ...], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The tensors of some parts of a checkpoint, by name.

    Args:
        folder: with the checkpoint's ``*.safetensors``.
        parts: first components of the names.
        device, dtype: of the tensors returned.

    Raises:
        UnknownWeightsError: a part has no tensors.
    """
    from safetensors import safe_open

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", device=str(device)) as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                name = key.removeprefix("model.")  # as Transformers 5 may save it
                if name.startswith(tuple(f"{part}." for part in parts)):
                    tensors[name] = file.get_tensor(key).to(dtype)
    for part in parts:
        if not any(name.startswith(f"{part}.") for name in tensors):
            raise UnknownWeightsError(f"{folder} has no tensors of the {part} in *.safetensors")
    return tensors
