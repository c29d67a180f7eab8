"""Load state dicts from files into networks that they match exactly. Nothing except tensors is unpickled."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from secateurs.errors import ArtifactError, Setting, a_or_an
from secateurs.files import is_archive, is_pickle, open_regular, read_tensors, shown
from secateurs.stripes import StripeConv

State = dict[str, Tensor]
_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin")
WEIGHTS = (".safetensors", *_TORCH_SUFFIXES)  # the suffixes of files that are read
_WRAPPERS = ("state_dict", "model", "model_state", "net")  # the keys under which training scripts keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and by torch.compile
_NESTED = 4  # levels of nested wrappers
OTHER = "Build the network the weights were trained for, or rename the keys in the file."
EXTRA = "_extra_state"  # suffix of the names under which a state dict stores the results of `get_extra_state`


def load_state(path: str | Path) -> State:
    """Read a state dict from a file, on the CPU: `.safetensors`, or `.pt .pth .th .bin` if it loads without unpickling code.

    A dict nested under `state_dict`, `model`, `model_state` or `net` is unwrapped; `module.` and `_orig_mod.` prefixes
    are removed. Raises ArtifactError for a file that is missing, damaged, of another type, or holds anything except tensors.
    """
    path = Path(path)
    if path.is_dir():
        hint = "Name a file of weights."
        if (path / "card.json").is_file():
            hint = "It is an artifact, which holds a network and its weights: pass it as the model, without weights."
        raise ArtifactError(f"{shown(path)} cannot be read: it is a folder, not a regular file.", hint=hint)
    if path.suffix == ".safetensors":
        return _clean(read_tensors(path), path)
    if path.suffix in _TORCH_SUFFIXES:
        return _clean(_load_torch(path), path)
    open_regular(path).close()  # report a missing file before a wrong suffix
    raise ArtifactError(
        f"{shown(path)}: weights of type {shown(path.suffix) or 'without a suffix'} are not read. "
        f"Use .safetensors, or a state dict saved as {', '.join(_TORCH_SUFFIXES)}."
    )


def load_into(model: nn.Module, path: str | Path, spec: str) -> None:
    """Copy the weights in a file into a model. Names and shapes must match: raises ArtifactError with the differences."""
    put(model, load_state(path), path, spec)


def passing_buffers(model: nn.Module) -> State:
    """Return the non-persistent buffers of a model by name. Its state dict leaves them out."""
    return {
        f"{path}.{leaf}" if path else leaf: x
        for path, module in model.named_modules()
        for leaf, x in module._buffers.items()
        if x is not None and leaf in module._non_persistent_buffers_set
    }


def put(
    model: nn.Module, state: State, path: str | Path, spec: str, values: Mapping[str, Any] = MappingProxyType({}),
    mismatch: str = OTHER,
) -> None:  # fmt: skip
    """Copy tensors that were read from `path` into a model, in the model's precision.

    The tensors are untrusted: each is compared with the model's own before anything is computed with it. They may include
    non-persistent buffers and extra state.

    values: entries of the state dict that are not tensors, or extra state. mismatch: what to say of another network's weights.

    Raises ArtifactError if names, shapes or dtypes differ, for NaNs, for infinite parameters, and for different values
    under several names of one tensor. The model is then unchanged. Also raises it for extra state that a module rejects.
    """
    own, passing, extra = dict[str, Tensor](), passing_buffers(model), dict[str, Any](values)
    for key, x in model.state_dict(keep_vars=True).items():
        if key.rpartition(".")[2] == EXTRA:
            if key in state:
                extra[key] = state[key]
        elif isinstance(x, Tensor):
            own[key] = x
    state = {key: x for key, x in state.items() if key not in extra}
    optional = passing.keys() - own.keys()
    own |= passing
    state = {**_tied(own, state), **state}
    # Checkpoints older than torch 0.4.1 lack the batch counters, which inference does not read.
    missing = [k for k in own if k not in state and k not in optional and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    both = [key for key in own if key in state]
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        for key in both
        if state[key].shape != own[key].shape
    ]
    kinds = [f"{key} {why}" for key in both if (why := _unlike(state[key], own[key])) is not None]
    if missing or unexpected or shapes or kinds:
        parts = [
            f"{len(found)} {what}: {shown('; '.join(found[:3]))[:500]}{'…' if len(found) > 3 else ''}"
            for what, found in (
                ("missing", missing), ("unexpected", unexpected), ("of another shape", shapes), ("of another type", kinds),
            )
            if found
        ]  # fmt: skip
        advice = _advice(missing, unexpected, shapes, kinds, mismatch)
        raise ArtifactError(f"{shown(path)} does not fit {shown(spec)}. {'. '.join(parts)}.", hint=advice)
    for key in both:
        if (what := _unsound(state[key], isinstance(own[key], nn.Parameter))) is not None:
            raise ArtifactError(
                f"{shown(path)} cannot be used: {shown(key)} has {what} values. Training may have diverged: use an "
                "earlier checkpoint."
            )
    for name, layer in model.named_modules():
        key = f"{name}.kept" if name else "kept"
        if isinstance(layer, StripeConv) and key in state and not torch.equal(state[key], layer.kept.cpu()):
            raise ArtifactError(f"{shown(path)} does not fit {shown(spec)}: {key} does not have the plan's stripes.")
    for first, *others in _shared({key: own[key] for key in both}):
        if other := next((name for name in others if not torch.equal(state[name], state[first])), None):
            raise ArtifactError(
                f"{shown(path)} does not fit {shown(spec)}: {first} and {other} are one tensor in the model and differ in the "
                "file. Build the network with a tensor for each."
            )
    extra_keys = [key for key in extra if key.rpartition(".")[2] == EXTRA]
    rest = {key: x for key, x in extra.items() if key not in extra_keys}
    model.load_state_dict({**state, **rest}, strict=False)
    with torch.no_grad():
        for key in optional & state.keys():
            passing[key].copy_(state[key])
    for key in extra_keys:
        module = model.get_submodule(key.rpartition(".")[0])
        try:
            module.set_extra_state(extra[key])
        except Exception as error:  # from the user's code
            name = shown(key.rpartition(".")[0]) or "The network"
            raise ArtifactError(
                f"{shown(path)} does not fit {shown(spec)}: {name} ({type(module).__name__}) does not take its extra state: "
                f"{type(error).__name__}: {shown(str(error))[:300]}."
            ) from error


# -- what a network accepts ------------------------------------------------------------------------------------------------


def _shared(own: State) -> list[list[str]]:
    """Group the names of each tensor that has more than one."""
    names: dict[Any, list[str]] = {}
    for key, tensor in own.items():
        if tensor.numel() and tensor.device.type != "meta":
            names.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), []).append(key)
    return [keys for keys in names.values() if len(keys) > 1]


def _tied(own: State, state: State) -> State:
    """Return shared tensors under all their names. The file may have them under one name only."""
    return {
        key: state[first]
        for keys in _shared(own)
        if (first := next((key for key in keys if key in state), None)) is not None
        for key in keys
    }


def _unlike(tensor: Tensor, own: Tensor) -> str | None:
    """Return the reason, other than its shape, that a tensor cannot replace the model's own. None if it can."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "is sparse or nested in the file: save it dense"
    if tensor.is_quantized:
        return "is quantized in the file: save it dequantized"
    if tensor.device.type == "meta":
        return "has no values in the file (it is a meta tensor)"
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"is {a_or_an(type(tensor).__name__)} in the file, not a plain tensor"
    if _kind(tensor) != _kind(own):
        return f"is {_name(tensor.dtype)} in the file and {_name(own.dtype)} in the model"
    return None


def _kind(tensor: Tensor) -> str:
    dtype = tensor.dtype
    return (
        "float" if dtype.is_floating_point else "complex" if dtype.is_complex
        else "bool" if dtype is torch.bool else "integer"
    )  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unsound(tensor: Tensor, parameter: bool) -> str | None:
    """Name the values that make a tensor invalid: NaN always, and infinity in a parameter (a mask may hold it)."""
    if _kind(tensor) not in ("float", "complex"):
        return None
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # 8-bit floats support few ops
    if bool(tensor.isnan().any()):
        return "NaN"
    return "infinite" if parameter and bool(tensor.isinf().any()) else None


def _advice(
    missing: list[str], unexpected: list[str], shapes: list[str], kinds: list[str], mismatch: str
) -> tuple[object, ...]:
    if kinds and not (missing or unexpected or shapes):
        return ("Save the state dict of the network as it was trained.",)
    if shapes and not (missing or unexpected or kinds) and len(shapes) <= 4:
        return "If these are the classifier's, pass the ", Setting("num_classes"), " the weights were trained with."
    return (mismatch,)


# -- what a file contains ---------------------------------------------------------------------------------------------------


def _load_torch(path: Path) -> object:
    where = shown(path)
    with open_regular(path) as file:
        zipped = _check_archive(file, path)
        file.seek(0)
        try:
            with warnings.catch_warnings():  # torch warns about pickles of another protocol before it rejects them
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if zipped or is_pickle(_head(file)):
                raise ArtifactError(
                    f"{where} holds more than tensors, and loading it would run code from the file. "
                    "At its source, save `model.state_dict()` instead, preferably as .safetensors."
                ) from error
            raise ArtifactError(f"{where} is damaged or is not a file written by torch.save. Copy it again.") from error
        except Exception as error:  # whatever PyTorch's reader raises on a damaged or malicious pickle
            first_line = shown(next(iter(str(error).splitlines()), ""))[:200] or type(error).__name__
            raise ArtifactError(
                f"{where} is truncated or is not a file written by torch.save ({first_line})."
            ) from error


def _check_archive(file: BinaryIO, path: Path) -> bool:
    """Whether the file is a zip archive, as torch.save writes. A bare pickle is from before PyTorch 1.6.

    Raises ArtifactError for an archive that torch.save does not write. torch.save stores entries uncompressed, so together
    they are no larger than the file; a compressed archive is rejected. So is the tar format from before 2017, which would be
    unpacked to disk.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        if not is_archive(head := _head(file)) and not is_pickle(head):
            raise ArtifactError(
                f"{shown(path)} is damaged or is not a file written by torch.save. Copy it again."
            ) from None
        return False
    size = file.seek(0, 2)
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
        raise ArtifactError(
            f"{shown(path)} is a compressed archive, which torch.save does not write: it could unpack to any size. "
            "Save the state dict again, preferably as .safetensors."
        )
    return True


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(4)


def _clean(loaded: object, path: Path) -> State:
    state: Any = loaded
    for _ in range(_NESTED):
        if not isinstance(state, Mapping) or any(isinstance(value, Tensor) for value in state.values()):
            break
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state:
        raise ArtifactError(
            f"{shown(path)} does not contain a state dict, but {_describe(loaded)}. Save `model.state_dict()`."
        )
    clean: State = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ArtifactError(
                f"{shown(path)}: a state dict maps names to tensors, but {_key(key)} is {_describe(value)}. "
                f"Nested weights are only found under {', '.join(_WRAPPERS)}."
            )
        name = _strip(key)
        if name in clean:
            raise ArtifactError(f"{shown(path)} contains {shown(name)[:100]} twice, once with a prefix.")
        clean[name] = value
    return clean


def _strip(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _key(key: object) -> str:
    """Describe a dict key of any type: a string by itself, any other key by its type."""
    return repr(key if len(key) <= 60 else key[:59] + "…") if isinstance(key, str) else f"{a_or_an(type(key).__name__)}"


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict with keys {', '.join(map(_key, list(value)[:5])) or '(none)'}"
    return f"of type {type(value).__name__}"
