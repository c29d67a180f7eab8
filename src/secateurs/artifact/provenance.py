"""The provenance of a network: the spec, widenings and cuts from which it can be rebuilt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateurs.artifact import Source
from secateurs.devices import memory
from secateurs.errors import ArtifactError, PlanError, SecateursError, Setting
from secateurs.files import brief, shown
from secateurs.plans import Plan
from secateurs.surgery import apply
from secateurs.widening.grow import resized
from secateurs.zoo import build

# Words in the names of constructor options that may load or download files.
_LOADS = frozenset({
    "cache", "cached", "cfg", "checkpoint", "config", "custom", "dict", "dir", "download", "file", "filename", "files",
    "folder", "hf", "hub", "pretrained", "repo", "url", "urls", "weights",
})  # fmt: skip
_REPLACES = ("name", "model_name")  # replaces the name in the spec
_NAMED = ("zoo", "torchvision", "timm")  # families whose specs name an installed network


UNKNOWN: Mapping[str, Any] = {"spec": None}  # the source of a network that did not come from `build`


def rebuilt(source: Source, trust_code: bool = False) -> nn.Module:
    """The network that an artifact's plan is for: built from its spec, and as wide and as narrow as it was.

    trust_code: import and call what the spec names, and allow any option of the constructor.

    Raises ArtifactError for a spec that requires it, and for one that cannot be built.
    """
    if source.spec is None:
        raise ArtifactError("it does not record how to build its network: pass the network yourself, model=…")
    if not trust_code:
        _refuse(source)
    left = None if trust_code else _Memory()
    try:
        with left or contextlib.nullcontext():
            model = build(source.spec, num_classes=source.num_classes, **source.options)
        model = _replayed(model, source)
    except SecateursError as error:
        raise ArtifactError(f"the network {source.spec} cannot be built: {shown(str(error))}") from error
    except Exception as error:  # of the constructor's own code
        reason = shown(str(error))[:300] or type(error).__name__
        raise ArtifactError(f"the network {source.spec} cannot be built: {reason}") from error
    return model


def begun(source: Source | None, model: nn.Module, plan: Plan) -> nn.Module:
    """The network that an artifact's plan is for, from a network that the user gives: a fresh one, to which the earlier
    widenings and cuts are applied, or one that the first of them have been applied to already.

    Raises PlanError if the plan fits none of them.
    """
    steps = [] if source is None else _steps(source)
    for first in range(len(steps) + 1):
        begins = model
        try:
            for step in steps[first:]:
                begins = step(begins)
            plan.check(begins)
            return begins
        except Exception as error:  # of a damaged record, too
            fault: Exception = error
    if not steps and isinstance(fault, SecateursError):
        raise fault
    count = f"{len(steps)} earlier cut{'s' * (len(steps) > 1)} or widening{'s' * (len(steps) > 1)}"
    raise PlanError(
        f"{shown(str(fault))[:500]}",
        hint=f"The artifact holds {count}: pass a network as it was before the first, or after any of them.",
    ) from fault


def _replayed(model: nn.Module, source: Source) -> nn.Module:
    """A network after its earlier widenings and cuts."""
    for step in _steps(source):
        model = step(model)
    return model


def _steps(source: Source) -> list[Callable[[nn.Module], nn.Module]]:
    """The earlier widenings and cuts of a network, in their order."""
    steps: list[Callable[[nn.Module], nn.Module]] = []
    for i, record in enumerate([*source.widen, None]):
        steps += [partial(apply, plan=cut.plan.plan("Its plan")) for cut in source.plans if cut.after == i]
        if record is not None:
            steps.append(partial(resized, record=record))
    return steps


def _refuse(source: Source) -> None:
    """Raise ArtifactError for a source that would run arbitrary code or download files."""
    assert source.spec is not None
    family, _, name = source.spec.partition(":")
    trust = (
        "Pass the network yourself (", Setting("model"), "), or ", Setting("trust_code", True), " only if you trust "
        "the artifact's author as you would trust a program.",
    )  # fmt: skip
    if family == "python":
        module, _, factory = name.partition(":")
        raise ArtifactError(
            f"its network comes from {source.spec}: to build it, the module {module} would be imported and "
            f"{factory or 'something in it'} called.",
            hint=trust,
        )
    if family not in _NAMED:
        raise ArtifactError(
            f"its network comes from {source.spec}, which is not one of {', '.join(_NAMED)}.", hint=trust
        )
    for option, value in source.options.items():
        if _loads(option, value):
            raise ArtifactError(
                f"its network is built with {shown(option)[:60]}={brief(value)}, which may load or download files.",
                hint=trust,
            )


def _loads(option: str, value: Any) -> bool:
    if value is None or value is False or option == "init_weights":
        return False
    if not _is_plain(value):  # a configuration, which may name any resource
        return True
    path = option.endswith("path") and not isinstance(value, int | float)  # drop_path=0.1 is a rate
    return path or option in _REPLACES or not _LOADS.isdisjoint(option.lower().split("_"))


class _Memory(TorchDispatchMode):
    """Raises before a tensor larger than this machine's memory is created."""

    def __init__(self) -> None:
        super().__init__()
        self.left = memory() or 64 << 30

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], list | tuple) and all(isinstance(n, int) for n in args[0]):  # empty, zeros, …
            self.left -= 4 * math.prod(args[0])
            if self.left < 0:
                raise ArtifactError("it would be larger than this machine's memory")
        return func(*args, **(kwargs or {}))


def after_cut(source: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The source of a network after this cut; each cut records how many widenings came before it."""
    record = {"after": len(source.get("widen", [])), "plan": json.loads(plan.to_json())}
    return {**source, "plans": [*source.get("plans", []), record]}


def remember(model: nn.Module, source: dict[str, Any]) -> None:
    """Record on a network how it was built."""
    model.secateurs_source = source  # type: ignore[assignment]
    unset = [f"{name}.{k}" for name, m in model.named_modules() for k, v in vars(m).items() if v is None]
    model.secateurs_built = (_structure(model, unset), _shapes(model), unset)  # type: ignore[assignment]


def remember_cut(small: nn.Module, source: Mapping[str, Any] | None, plan: Plan) -> None:
    """Record on a network how it was built: by this cut of a network with this source (see `source_of`)."""
    remember(small, after_cut(UNKNOWN if source is None else source, plan))


def remember_widened(wide: nn.Module, model: nn.Module, record: dict[str, Any]) -> None:
    """Record on a network how it was built from the one that it was widened from; see `Growth.record`."""
    source = source_of(model) or UNKNOWN
    remember(wide, {**source, "widen": [*source.get("widen", []), record]})


def source_of(model: nn.Module) -> dict[str, Any] | None:
    """How to rebuild this network. Of one that was not made by `build`, or was modified since, the widenings and cuts alone,
    without a spec; None if there are none, or if its parameters are not those that they left."""
    source = getattr(model, "secateurs_source", None)
    structure, shapes, unset = getattr(model, "secateurs_built", None) or (None, None, ())
    if not isinstance(source, dict) or shapes != _shapes(model):
        return None
    if structure != _structure(model, unset) or not _is_json(source):
        source = {**UNKNOWN, **{key: source[key] for key in ("widen", "plans") if source.get(key)}}
        return source if len(source) > 1 and _is_json(source) else None
    return source


def spec_of(model: nn.Module) -> str | None:
    """The spec that this network can be rebuilt from, if there is one."""
    return (source_of(model) or UNKNOWN)["spec"]


def _is_json(source: dict[str, Any]) -> bool:
    """False for an option that cannot be serialized."""
    try:
        return json.loads(json.dumps(source)) == source
    except (TypeError, ValueError):
        return False


def _shapes(model: nn.Module) -> str:
    """A fingerprint of the parameters' names and shapes."""
    shapes = sorted((name, tuple(p.shape)) for name, p in model.named_parameters())
    return hashlib.sha256(repr(shapes).encode()).hexdigest()


def _structure(model: nn.Module, unset: Sequence[str]) -> str:
    """A fingerprint that detects edits of a network: another stride, a replaced module, a forward of
    its own.

    unset: attributes that were None when the network was built, and may hold a value since its first forward, as the scales of
    torchvision's MultiScaleRoIAlign do.
    """
    parts: list[Any] = []
    late = set(unset)
    for name, module in model.named_modules():
        given = {k: v for k, v in vars(module).items() if k not in _PASSING and f"{name}.{k}" not in late}
        plain = {k: v for k, v in given.items() if _is_plain(v)}
        own = sorted(k for k, v in given.items() if callable(v) and not isinstance(v, type))
        parts.append((name, type(module).__module__, type(module).__qualname__, sorted(plain.items()), own))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


_PASSING = {"training", "secateurs_source", "secateurs_built"}  # independent of how a module was built


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
