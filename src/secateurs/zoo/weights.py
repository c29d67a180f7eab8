"""State dicts from files, without unpickling anything but tensors."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateurs.errors import ArtifactError

_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin")
_WRAPPERS = ("state_dict", "model", "model_state", "net")  # the keys under which training scripts keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and by torch.compile


def load_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU: `.safetensors`, or `.pt .pth .th .bin` if it loads without unpickling code.

    A dict nested under `state_dict`, `model`, `model_state` or `net` is unwrapped; `module.` and `_orig_mod.` prefixes
    go. Raises ArtifactError for a file that is missing, damaged, of another type, or that holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"No weights at {path}: {'it is a folder' if path.is_dir() else 'there is no such file'}.")
    if path.suffix == ".safetensors":
        try:
            return _clean(load_file(path), path)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} is not a readable safetensors file ({error}). Copy it again.") from error
    if path.suffix in _TORCH_SUFFIXES:
        return _clean(_load_torch(path), path)
    raise ArtifactError(
        f"{path}: weights of type {path.suffix or 'without a suffix'} are not read. "
        f"Use .safetensors, or a state dict saved as {', '.join(_TORCH_SUFFIXES)}."
    )


def _load_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():  # it warns of pickles of another protocol before it refuses them
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _complete(path):
            raise ArtifactError(
                f"{path} holds more than tensors, and loading it would run code from the file. "
                "Save `model.state_dict()` instead, best as .safetensors, where the file comes from."
            ) from error
        raise ArtifactError(f"{path} is damaged or is not a file written by torch.save. Copy it again.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(f"{path} is truncated or is not a file written by torch.save ({first_line}).") from error


def _complete(path: Path) -> bool:
    """Whether the file is whole enough for the pickle in it to be the problem: a zip archive, or a bare pickle."""
    if zipfile.is_zipfile(path):
        return True
    with path.open("rb") as file:
        return file.read(1) == b"\x80"  # the first opcode of any pickle of the last twenty years


def _clean(loaded: object, path: Path) -> dict[str, Tensor]:
    state: Any = loaded
    while isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state:
        raise ArtifactError(f"{path} holds no state dict, but {_describe(loaded)}. Save `model.state_dict()`.")
    clean: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ArtifactError(
                f"{path}: a state dict maps names to tensors, but {key!r} is {_describe(value)}. "
                f"The weights may be nested; they are looked for under {', '.join(_WRAPPERS)}."
            )
        clean[_strip(key)] = value
    return clean


def _strip(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict with keys {', '.join(map(str, list(value)[:5])) or '(none)'}"
    return f"of type {type(value).__name__}"


def load_into(model: nn.Module, path: str | Path, spec: str) -> None:
    """Copy the weights in a file into a model of the very same names and shapes; ArtifactError says what differs."""
    state = load_state(path)
    own = model.state_dict()
    # Checkpoints older than torch 0.4.1 lack the batch counters, which no inference reads.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(keys)} {what}: {'; '.join(keys[:3])}{'…' if len(keys) > 3 else ''}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        raise ArtifactError(f"{path} does not fit {spec}. {'. '.join(parts)}. {_advice(missing, unexpected, shapes)}")
    model.load_state_dict(state, strict=False)  # copies into the model's own precision


def _advice(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    if shapes and not missing and not unexpected and len(shapes) <= 4:
        return "If these belong to the classifier, pass the num_classes the weights were trained with."
    return "Build the network the weights were trained for, or rename the keys in the file."
