"""Everything in a network that changes after it is built, as tensors and JSON: its state dict, non-persistent buffers, and
extra state (`get_extra_state`)."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateurs.artifact.fields import Line, Open
from secateurs.errors import ArtifactError, a_or_an
from secateurs.files import StrPath, is_archive, is_pickle, shown
from secateurs.graph.channels import named_tensors
from secateurs.zoo.weights import EXTRA, passing_buffers, put

_DEPTH = 12  # of containers in extra state: a card may have 64 levels, and each container takes up to three
_SCALARS = (bool, int, float, str, type(None))
_MAPPINGS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict}
_FORMATS = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
}  # that networks compute in


class StateRecord(Open):
    """What a card says about a network's state besides its tensors.

    values: entries of the state dict that are not tensors, by name. Numbers, strings and lists are as in JSON. Other values are
        `{"tuple": […]}`, `{"dict": [[key, value], …]}`, `{"OrderedDict": …}`, `{"float": "nan"}`, and `{"tensor": name}`
        for a tensor of model.safetensors.
    tied: the names of parameters and buffers that are one tensor.
    """

    values: dict[Line, Any] = {}
    tied: list[list[Line]] = []


class State(NamedTuple):
    """The state of a network. tensors: by name; a shared tensor occurs once. record: what goes on the card."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def gathered(model: nn.Module) -> State:
    """Return the state of a network. Raises ArtifactError, with the module's name, if storing it would need pickle."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    extra: dict[str, Tensor] = {}
    for key, value in _state_dict(model).items():
        if isinstance(value, Tensor) and not _is_extra(key):
            tensors[key] = value
        else:
            values[key] = _encoded(value, key, extra)
    tensors |= passing_buffers(model)
    names: dict[int, list[str]] = {}
    for key, tensor in tensors.items():
        _check_plain(tensor, key)
        names.setdefault(id(tensor), []).append(key)
    tied = [keys for keys in names.values() if len(keys) > 1]
    record = {**({"values": values} if values else {}), **({"tied": tied} if tied else {})}
    return State({keys[0]: _own(tensors[keys[0]]) for keys in names.values()} | extra, record)


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a network's parameters and buffers, including their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(named_tensors(model).items()):
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(content.numpy().tobytes())
    return found.hexdigest()


def check_state(model: nn.Module) -> None:
    """Raise ArtifactError for a network that could not be saved; see `gathered`. Call this before work on it begins."""
    gathered(model)


def check_tied(model: nn.Module, record: StateRecord | None, path: StrPath) -> None:
    """Raise ArtifactError if a network has several tensors where the saved network had one shared tensor."""
    own = _tensors(model)
    for keys in [] if record is None else record.tied:
        held = [key for key in keys if key in own]
        if other := next((key for key in held[1:] if own[key] is not own[held[0]]), None):
            raise ArtifactError(
                f"{shown(path)} does not fit this model: {shown(held[0])} and {shown(other)} are one tensor in the saved "
                f"network and two in this one. Tie them first: model.{shown(other)} = model.{shown(held[0])}."
            )


def restore_(
    model: nn.Module, tensors: dict[str, Tensor], record: StateRecord | None, path: StrPath, card: StrPath
) -> None:
    """Load the result of `gathered` into a network of the same structure. The network gets the saved number formats: a fresh
    one is in float32.

    path, card: the files that tensors and record come from, for messages. Raises ArtifactError if the state does not fit.
    """
    used: set[str] = set()
    values: dict[str, Any] = {}
    own = _state_dict(model)
    for key, encoded in ({} if record is None else record.values).items():
        if key not in own:
            raise ArtifactError(
                f"{shown(card)} does not fit this model: it has a state of {_called(key)}, which this model does not have."
            )
        try:
            values[key] = _decoded(encoded, tensors, used)
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{shown(card)} is not valid: the state of {_called(key)}: {shown(str(error))}."
            ) from None
    plain = {key: x for key, x in tensors.items() if key not in used}
    if missing := [key for key in own if _is_extra(key) and key not in values and key not in plain]:
        raise ArtifactError(f"{shown(card)} does not fit this model: it has no state of {_called(missing[0])}.")
    _make_room(model, plain)
    _reformat(model, plain)
    other = "The artifact is of another network than this one."
    put(model, plain, Path(path), "the network that the plan leaves", values, other)


def _state_dict(model: nn.Module) -> dict[str, Any]:
    try:
        return model.state_dict(keep_vars=True)
    except Exception as error:  # from the user's get_extra_state
        raise ArtifactError(f"The state of the network cannot be read: {type(error).__name__}: {error}.") from error


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    own = {key: x for key, x in _state_dict(model).items() if isinstance(x, Tensor) and not _is_extra(key)}
    return own | passing_buffers(model)


def _make_room(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give buffers of custom modules the saved shape and dtype, because a forward may have filled or replaced them."""
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):
            continue
        for leaf, own in module._buffers.items():
            saved = tensors.get(f"{path}.{leaf}" if path else leaf)
            if saved is not None and (own is None or own.shape != saved.shape or own.dtype != saved.dtype):
                device = next((x.device for x in (own, *model.parameters()) if x is not None), saved.device)
                module._buffers[leaf] = torch.empty_like(saved, device=device)


def _reformat(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give floating-point and complex tensors the number formats of the saved ones."""
    for key, own in _tensors(model).items():
        saved = tensors.get(key)
        if saved is None or own.dtype == saved.dtype or own.is_complex() != saved.is_complex():
            continue
        if {own.dtype, saved.dtype} <= _FORMATS:
            own.data = own.data.to(saved.dtype)


def _is_extra(key: str) -> bool:
    return key.rpartition(".")[2] == EXTRA


def _called(key: str) -> str:
    """Describe an entry of a state dict: its name, or the module of an extra state."""
    return f"module {shown(key.rpartition('.')[0]) or 'the network'}" if _is_extra(key) else shown(key)


def _own(tensor: Tensor) -> Tensor:
    """Return a tensor that does not share its memory, as files require."""
    tensor = tensor.detach()
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


# -- extra state as JSON ---------------------------------------------------------------------------------------------------


def _check_plain(tensor: Tensor, key: str) -> None:
    what = (
        "sparse or nested" if tensor.layout is not torch.strided or tensor.is_nested
        else "quantized" if tensor.is_quantized
        else "without values (on the meta device)" if tensor.device.type == "meta"
        else f"{a_or_an(type(tensor).__name__)}" if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer)
        else None
    )  # fmt: skip
    if what is not None:
        raise ArtifactError(
            f"The network cannot be saved: {shown(key)} is {what}, and an artifact holds dense tensors only. Convert it first."
        )


def _encoded(value: Any, key: str, tensors: dict[str, Tensor], depth: int = 0) -> Any:
    """Encode a value in the form of `StateRecord.values`. Its tensors are added to `tensors`."""

    def inner(x: Any) -> Any:
        return _encoded(x, key, tensors, depth + 1)

    kind = type(value)
    if depth > _DEPTH:
        raise _refused(key, f"more than {_DEPTH} levels of lists and dicts")
    if kind is float and not math.isfinite(value):
        return {"float": str(value)}
    if kind in _SCALARS:
        return value
    if kind is list:
        return [inner(x) for x in value]
    if kind is tuple:
        return {"tuple": [inner(x) for x in value]}
    if kind in _MAPPINGS.values():
        return {kind.__name__: [[inner(k), inner(x)] for k, x in value.items()]}
    if isinstance(value, Tensor):
        _check_plain(value, key)
        if _is_pickled(value):
            raise _refused(key, "a pickle in a tensor of bytes")
        name = f"{key}.{len(tensors)}"
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    raise _refused(key, f"an object of type {kind.__module__}.{kind.__qualname__}")


def _refused(key: str, what: str) -> ArtifactError:
    where = f"The extra state of {_called(key)}" if _is_extra(key) else f"The state dict's entry {shown(key)}"
    function = "get_extra_state" if _is_extra(key) else "the state dict"
    return ArtifactError(
        f"The network cannot be saved: {where} holds {what}, which an artifact cannot store without pickle. Return numbers, "
        f"texts, lists, dicts and tensors from {function}."
    )


def _decoded(value: Any, tensors: Mapping[str, Tensor], used: set[str]) -> Any:
    """Decode a result of `_encoded`. Raises ValueError, TypeError or KeyError for anything else."""

    def inner(x: Any) -> Any:
        return _decoded(x, tensors, used)

    if isinstance(value, list):
        return [inner(x) for x in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"an object of {len(value)} fields")
    (tag, content), *_ = value.items()
    readers: dict[str, Callable[[], Any]] = {
        "float": lambda: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content],
        "tuple": lambda: tuple(inner(x) for x in _listed(content)),
        "tensor": lambda: _tensor(content, tensors, used),
        **{
            name: lambda made=made: made((inner(k), inner(x)) for k, x in map(_pair, _listed(content)))  # type: ignore[misc]
            for name, made in _MAPPINGS.items()
        },
    }
    if tag not in readers:
        raise ValueError(f"unknown kind of value {tag[:40]!r}")
    return readers[tag]()


def _tensor(name: Any, tensors: Mapping[str, Tensor], used: set[str]) -> Tensor:
    if not isinstance(name, str) or name not in tensors:
        raise ValueError("it names a tensor that is not in the file")
    if _is_pickled(tensors[name]):
        raise ValueError("it holds a pickle")
    used.add(name)
    return tensors[name]


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {type(value).__name__}")
    return value


def _pair(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("expected pairs of key and value")
    return value


def _is_pickled(tensor: Tensor) -> bool:
    """Whether bytes come from `pickle.dumps` or `torch.save`: some modules store their extra state this way and unpickle it."""
    if tensor.dtype not in (torch.uint8, torch.int8) or tensor.numel() < 2:
        return False
    head = bytes(tensor.detach().flatten()[:4].cpu().view(torch.uint8).tolist())
    return is_archive(head) or is_pickle(head)
