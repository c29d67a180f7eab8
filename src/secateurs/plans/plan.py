"""A plan describes what to keep: self-contained, immutable, serializable as JSON. Applying it needs a model but no graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator
from torch import nn

from secateurs.errors import ArtifactError, PlanError, a_or_an
from secateurs.files import StrPath, check_format, parse_json, shown
from secateurs.graph import Cost, attributes
from secateurs.graph.channels import ChannelGraph, by_name, named_tensors
from secateurs.graph.figures import named_like_a_width
from secateurs.graph.inputs import check_model
from secateurs.graph.trace import trace as trace_channels
from secateurs.graph.wrappers import check_plain, part_with
from secateurs.plans import stripes as S
from secateurs.stripes import rule as rule  # registers the rule of stripe convolutions

VERSION = 3  # version 1 had no stripes, and version 2 only attributes of PyTorch's modules
Kept = tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Plan:
    """What to keep of each parameter axis, and the module attributes to update."""

    groups: Mapping[str, Kept]  # the selection that it was made from: kept channels per group
    kept: Mapping[str, Mapping[int, Kept]]  # parameter → axis → kept indices; axes left out are kept whole
    shapes: Mapping[str, tuple[int, ...]]  # the shapes of those parameters before the cut
    attributes: Mapping[tuple[str, str], Any]  # (module, attribute) → value after the cut
    consumes: frozenset[
        tuple[str, int]
    ]  # the (parameter, axis) pairs that consume channels: zeroed in the masked network
    exact: bool = True
    stripes: Mapping[str, Kept] = field(
        default_factory=dict
    )  # weight → kept positions in the flattened (O, *kernel), before the cut
    least: Mapping[str, int] = field(default_factory=dict)  # group → channels that must stay, if more than one

    def __post_init__(self) -> None:
        for name in ("groups", "shapes", "attributes", "stripes", "least"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        kept = {p: MappingProxyType(dict(axes)) for p, axes in self.kept.items()}
        object.__setattr__(self, "kept", MappingProxyType(kept))

    def __repr__(self) -> str:
        left = sum(map(len, self.groups.values()))
        return (
            f"Plan({len(self.groups)} groups cut to {left} channels, {len(self.kept)} parameters, exact={self.exact})"
        )

    def __reduce__(self) -> Any:  # for copies: a mapping proxy cannot be pickled
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
        values["kept"] = {param: dict(axes) for param, axes in self.kept.items()}
        return partial(Plan, **values), ()

    def check(self, model: nn.Module) -> None:
        """Raise PlanError unless the plan fits the model's parameters, and TraceError if the model is a wrapper."""
        check_model(model)
        check_plain(model)
        self._check_least()
        own = named_tensors(model)
        for name, shape in self.shapes.items():
            if name not in own:
                part = part_with(model, self.shapes)
                raise PlanError(
                    f"The plan cuts {name}, which this model does not have: the plan is for another network."
                    if part is None
                    else f"The plan is for a part of this {type(model).__name__}, {part!r}: pass that part, model.{part}."
                )
            if tuple(own[name].shape) != shape:
                raise PlanError(
                    f"The plan expects {name} of shape {shape}, this model has {tuple(own[name].shape)}: "
                    f"the plan is for another network, or this one is already cut."
                )

        modules = dict(model.named_modules())
        S.check_modules(self.stripes, modules)
        for module, attribute in self.attributes:
            if not repeats_a_width(modules.get(module), attribute):
                raise PlanError(
                    f"The plan rewrites {attribute} of {module or 'the model'}, which this model does not have: "
                    f"the plan is for another network."
                )

    def then(self, later: Plan) -> Plan:
        """Return one plan that makes two cuts: first this plan, then `later`, which is for the network that this plan leaves.

        Raises PlanError if `later` is for another network, or if this plan cuts stripes, since stripes must be cut last.
        """
        if self.stripes:
            raise PlanError(f"The first plan cuts stripes of {min(self.stripes)}: only the last of several cuts may.")
        kept = {param: dict(axes) for param, axes in self.kept.items()}
        for param, axes in later.kept.items():
            left = {axis: len(index) for axis, index in self.kept.get(param, {}).items()}
            size = [left.get(axis, n) for axis, n in enumerate(self.shapes.get(param, later.shapes[param]))]
            if tuple(size) != tuple(later.shapes[param]):
                raise PlanError(
                    f"The second plan expects {param} of shape {later.shapes[param]}, the first one leaves {tuple(size)}."
                )
            own = kept.setdefault(param, {})
            for axis, index in axes.items():
                own[axis] = _taken(own.get(axis), index)
        groups = {**self.groups, **{g: _taken(self.groups.get(g), index) for g, index in later.groups.items()}}
        return Plan(
            groups=groups,
            kept=kept,
            shapes={**later.shapes, **self.shapes},
            attributes={**self.attributes, **later.attributes},
            consumes=self.consumes | later.consumes,
            exact=self.exact and later.exact,
            stripes={
                weight: S.within(places, later.shapes[weight], self.kept.get(weight, {}).get(0))
                for weight, places in later.stripes.items()
            },
            least={**self.least, **later.least},
        )

    @property
    def _version(self) -> int:
        """The oldest format version that supports everything in this plan."""
        known = all(attribute in attributes.NAMES for _, attribute in self.attributes)
        return (2 if self.stripes else 1) if known else 3

    def to_json(self) -> str:
        """Return the plan as JSON, with a digest of its content."""
        body = {
            "format": "secateurs-plan",
            "version": self._version,
            "exact": self.exact,
            "groups": {g: list(v) for g, v in self.groups.items()},
            "shapes": {p: list(s) for p, s in self.shapes.items()},
            "kept": {p: {str(a): list(v) for a, v in axes.items()} for p, axes in self.kept.items()},
            "attributes": [
                [m, a, list(v) if isinstance(v, tuple | list) else v] for (m, a), v in self.attributes.items()
            ],
            "consumes": sorted([p, a] for p, a in self.consumes),
            **({"stripes": {p: list(v) for p, v in self.stripes.items()}} if self.stripes else {}),
            **({"least": dict(self.least)} if self.least else {}),
        }
        return json.dumps({**body, "digest": _digest(body)})

    @classmethod
    def from_json(cls, text: str | bytes, source: StrPath = "The plan") -> Plan:
        """Read a plan from JSON.

        source: the file that the text was read from, for messages.

        Raises PlanError for text that is not a plan, was modified or truncated, is inconsistent, or is from a newer version.
        """
        try:
            return parse_json(text, PlanRecord, source).plan(source)
        except ArtifactError as error:
            raise PlanError(str(error)) from None

    def _check_content(self) -> None:
        """Raise PlanError unless the plan is consistent. The plan is untrusted, so the check takes time and memory in
        proportion to the plan itself, whatever sizes it claims."""
        for param, axes in self.kept.items():
            shape = self.shapes.get(param)
            for axis, index in axes.items():
                if shape is None or not 0 <= axis < len(shape):
                    raise PlanError(f"The plan cuts axis {axis} of {param}, but gives its shape as {shape}.")
                if _checked(index, shape[axis], f"axis {axis} of {param}").tolist() != list(index):
                    raise PlanError(f"Kept channels of axis {axis} of {param} are not in ascending order.")
        for param, axis in self.consumes:
            if axis not in self.kept.get(param, ()):
                raise PlanError(f"The plan masks axis {axis} of {param}, which it does not cut.")
        S.check_content(self.stripes, self.shapes, self.kept)
        self._check_least()
        for (module, attribute), value in self.attributes.items():
            if not rewritable(attribute):
                raise PlanError(f"The plan sets {module}.{attribute} to {value!r}, which a cut cannot change.")

    def _check_least(self) -> None:
        """Raise PlanError if a group keeps fewer channels than the network's code needs."""
        for group, least in self.least.items():
            if len(kept := self.groups.get(group, range(least))) < least:
                raise PlanError(
                    f"The plan keeps {len(kept)} of the channels of group {group}, which needs at least {least}: the network's "
                    "code does not work with fewer. Keep more of them."
                )


def _taken(first: Kept | None, later: Kept) -> Kept:
    """Return what two cuts in a row keep, as indices of the original axis. first: None if the first cut keeps all of it."""
    return tuple(later) if first is None else tuple(first[i] for i in later)


def rewritable(attribute: str) -> bool:
    """Whether a plan may set this attribute of a module. A file cannot set others."""
    return attribute in attributes.NAMES or named_like_a_width(attribute)


def repeats_a_width(module: nn.Module | None, attribute: str) -> bool:
    """Whether this attribute of a module is a number or a shape. A plan replaces nothing else."""
    value = getattr(module, attribute, None) if rewritable(attribute) else None
    sizes = list(value) if isinstance(value, tuple | list) else [value]
    return all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)


Size = Annotated[int, Field(strict=True, ge=1, le=2**40)]
Index = Annotated[int, Field(strict=True, ge=0, lt=2**40)]
Indices = Annotated[list[Index], Field(min_length=1)]
Sizes = Annotated[list[Size], Field(max_length=8)]
Number = Annotated[int, Field(strict=True, ge=-1, le=2**40)]
Shape = Annotated[list[Number], Field(max_length=8)]  # that a module keeps: -1 is computed
Attribute = tuple[str, str, Size | Shape]  # module, attribute, value after the cut


class PlanRecord(BaseModel):
    """The JSON form of a plan: see `Plan` for the fields."""

    format: Literal["secateurs-plan"]
    version: int
    exact: Annotated[bool, Field(strict=True)]
    groups: dict[str, Indices]
    shapes: dict[str, Sizes]
    kept: dict[str, dict[Annotated[str, Field(pattern="^[0-7]$")], Indices]]
    attributes: list[Attribute]
    consumes: list[tuple[str, Index]]
    stripes: dict[str, Indices] = {}
    least: dict[str, Size] = {}
    digest: str

    @model_validator(mode="before")
    @classmethod
    def _genuine(cls, body: Any) -> Any:
        check_format(body, "secateurs-plan", VERSION, "a Secateurs plan")
        if body.get("digest") != _digest({k: v for k, v in body.items() if k != "digest"}):
            raise ValueError("its content does not match its digest: it was edited or is damaged")
        return body

    def plan(self, source: StrPath = "The plan") -> Plan:
        """Return the plan. Raises PlanError, which names the source, if the plan is inconsistent."""
        plan = Plan(
            groups={g: tuple(v) for g, v in self.groups.items()},
            kept={p: {int(a): tuple(v) for a, v in axes.items()} for p, axes in self.kept.items()},
            shapes={p: tuple(s) for p, s in self.shapes.items()},
            attributes={(m, a): tuple(v) if isinstance(v, list) else v for m, a, v in self.attributes},
            consumes=frozenset(self.consumes),
            exact=self.exact,
            stripes={p: tuple(v) for p, v in self.stripes.items()},
            least=self.least,
        )
        try:
            plan._check_content()
        except PlanError as error:
            raise PlanError(f"{shown(source)} is not valid: {shown(str(error))}") from None
        return plan


def check_plan(plan: Any, model: nn.Module) -> None:
    """Raise PlanError for what is not a plan, or not one for this model; TraceError for a wrapper around the model."""
    check_model(model)
    if not isinstance(plan, Plan):
        held = isinstance(getattr(plan, "plan", None), Plan)  # what `prune` returns
        hint = "pass its plan, result.plan" if held else "make one with graph.plan({group name: kept indices})"
        raise PlanError(f"{a_or_an(type(plan).__name__)} is not a plan: {hint}.")
    plan.check(model)


class PrunableGraph(ChannelGraph):
    """A channel graph that creates plans."""

    def plan(
        self,
        selection: Mapping[str, Iterable[int]],
        *,
        stripes: Mapping[str, Any] | None = None,
        allow_inexact: bool = False,
    ) -> Plan:
        """Create a plan that keeps these channels of these groups: `{group name: kept indices}`; other groups stay whole. A
        group may also be named by a layer that produces it.

        stripes: `{weight of a convolution: what it keeps}`, as bools of shape (O, *kernel) or as positions in that shape
            flattened. See `kernels` for the available weights. Stripes of filters that are cut with their channels are always
            cut.
        allow_inexact: also accept groups that are not `exact` (see `ChannelGroup`).

        Raises PlanError for an unknown or unprunable group, indices that repeat or are out of range, and a selection
        that would leave a group empty, or with fewer channels than its `least`; likewise for stripes.
        """
        if not isinstance(selection, Mapping):
            raise PlanError(
                f"A plan is made from a dict, {{group name: kept indices}}, not from {a_or_an(type(selection).__name__)}."
            )
        kept: dict[str, dict[int, np.ndarray]] = {}
        groups: dict[str, Kept] = {}
        least: dict[str, int] = {}
        copies: dict[str, np.ndarray] = {}
        seen: dict[str, str] = {}
        consumes: set[tuple[str, int]] = set()
        exact = True
        for name, wanted in by_name(selection).items():
            group = self[name]
            if group.name in seen:
                raise PlanError(f"The selection has group {group.name} twice: as {seen[group.name]} and as {name}.")
            seen[group.name] = name
            index = _checked(wanted, group.size, f"group {name}")
            if len(index) == group.size:
                continue
            if not group.prunable and not (allow_inexact and group.only_inexact):
                why = "" if group.reason is None else group.reason.message
                raise PlanError(f"Group {name} cannot be cut: ", why, ".")
            if len(index) < group.least:
                raise PlanError(
                    f"The plan would keep {len(index)} of the {group.size} channels of group {name}, which needs at least "
                    f"{group.least}: {group.least_reason}."
                )
            groups[group.name] = tuple(index.tolist())
            least.update({group.name: group.least} if group.least > 1 else {})
            exact = exact and group.exact
            alive = np.zeros(group.size, dtype=bool)
            alive[index] = True
            copies[group.name], gone = alive, np.flatnonzero(~alive)
            for slot in group.slots:
                n = self.shapes[slot.param][slot.axis]
                left = kept.setdefault(slot.param, {}).setdefault(slot.axis, np.ones(n, dtype=bool))
                left[slot.index[gone].ravel()] = False
                if slot.consumes:
                    consumes.add((slot.param, slot.axis))
        filters = {p: np.flatnonzero(axes[0]) for p, axes in kept.items() if 0 in axes}
        striped = S.checked(stripes, self.kernels, filters) if stripes else {}
        shapes = {p: self.shapes[p] for p in kept}
        # The parameters of a layer and its batch norm keep the same indices: one tuple serves them all.
        tuples: dict[bytes, Kept] = {}
        indices: dict[str, dict[int, Kept]] = {p: {} for p in kept}
        for param, axes in kept.items():
            for axis, left in axes.items():
                key = left.tobytes()
                if key not in tuples:
                    tuples[key] = tuple(np.flatnonzero(left).tolist())
                indices[param][axis] = tuples[key]
        return Plan(
            groups=groups,
            kept=indices,
            shapes=shapes | {p: self.shapes[p] for p in striped},
            attributes=self.rewrites(copies),
            consumes=frozenset(consumes),
            exact=exact,
            stripes=striped,
            least=least,
        )

    def cost_of(self, plan: Plan) -> Cost:
        """Return the cost of the network after this cut."""
        return self.cost({g: len(v) for g, v in plan.groups.items()}, {w: len(v) for w, v in plan.stripes.items()})


def trace(
    model: nn.Module, example_inputs: Any, *, allow_inexact: bool = False, example_targets: Any = None
) -> PrunableGraph:
    return trace_channels(
        model, example_inputs, allow_inexact=allow_inexact, example_targets=example_targets, kind=PrunableGraph
    )


trace.__doc__ = trace_channels.__doc__


def _checked(wanted: Iterable[int], n: int, where: str) -> np.ndarray:
    """Return kept indices as a sorted array. Raises PlanError if they are not valid."""
    try:
        index = np.asarray(list(wanted))
    except (TypeError, ValueError):  # not iterable, or ragged
        raise PlanError(f"Kept channels of {where} must be a list of integers, not {wanted!r:.80}.") from None
    if index.size == 0:
        raise PlanError(f"The plan would keep no channel of {where}: keep at least one of its {n} channels.")
    if index.ndim != 1:
        raise PlanError(f"Kept channels of {where} must be a flat list of integers, not {index.ndim}-dimensional.")
    if index.dtype.kind not in "iu":
        raise PlanError(f"Kept channels of {where} must be integers, not {index.dtype}.")
    index = np.sort(index.astype(np.int64))
    if index[0] < 0 or index[-1] >= n:
        raise PlanError(f"Kept channels of {where} must be in 0…{n - 1}, got {index[0]} to {index[-1]}.")
    if (index[1:] == index[:-1]).any():
        raise PlanError(f"Kept channels of {where} repeat: {index[1:][index[1:] == index[:-1]][0]} is listed twice.")
    return index


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
