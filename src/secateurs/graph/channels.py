"""The channel graph: the channels of a network, their parameter slots, and the cost of the network at any widths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.errors import PlanError, nearest
from secateurs.graph.cost import Cost, CostModel
from secateurs.graph.flow import Flow
from secateurs.graph.naming import named_tensors as named_tensors
from secateurs.graph.owners import Count, Owners
from secateurs.graph.reasons import Kind, Reason
from secateurs.markup import html_table

Array = np.ndarray
LISTED = 60  # groups that a notebook shows
Shapes = Mapping[str, tuple[int, ...]]
G = TypeVar("G", bound="ChannelGraph")
T = TypeVar("T")


class Clock(Protocol):
    """A latency model of a network."""

    def __call__(self, widths: Array, stripes: Mapping[str, int] | None = None) -> float:
        """Return the seconds of one forward pass at these widths, (groups,). stripes: kernel → number of stripes left in it."""

    @property
    def steps(self) -> Array:
        """The step of each group's width, (groups,): its multiples are fast on the hardware."""

    @property
    def doubt(self) -> str:
        """Why the model is not reliable, as part of a sentence; empty if it is."""


def has_stripes(module: Any) -> bool:
    """Whether stripes can be cut from a module: a convolution (not a subclass, nor one whose `forward` was replaced) with one
    group and zero padding."""
    plain = type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and "forward" not in module.__dict__
    return plain and module.groups == 1 and module.padding_mode == "zeros"


@dataclass(frozen=True)
class Slot:
    """The positions of a group's channels on one axis of one parameter or buffer."""

    param: str
    axis: int
    index: Array = field(repr=False)  # (size, m): the m indices of each channel
    produces: bool = False  # the parameter produces the channels on this axis …
    consumes: bool = False  # … or consumes them; neither for per-channel parameters (batch norm, bias)
    holders: tuple[str, ...] = field(default=(), repr=False)  # all modules that hold the parameter, if it is shared

    @property
    def module(self) -> str:
        """The module that owns the parameter, or the parameter itself if the model holds it directly."""
        return self.owners[0]

    def taken(self, w: Tensor) -> Tensor:
        """Return the values of a tensor of the parameter's shape by channel: (size, values per channel). A view if possible."""
        if not _whole(self.index, w.shape[self.axis]):
            w = w.index_select(self.axis, torch.from_numpy(self.index).to(w.device).reshape(-1))
        return w.movedim(self.axis, 0).reshape(len(self.index), -1)

    def rows(self, model: nn.Module) -> Tensor:
        """Return the parameter's values by channel, detached: (size, values per channel). A view if possible."""
        return self.taken(parameter(model, self.param).detach())

    @property
    def owners(self) -> tuple[str, ...]:
        """All modules that own the parameter, several if it is shared. A parametrization's parameters belong to the module that
        it parametrizes."""
        holders = self.holders or (self.param.rpartition(".")[0],)
        return tuple(dict.fromkeys(_parametrized(path) or self.param for path in holders))


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels on the same parameter axes; each channel can be kept or cut independently."""

    name: str
    size: int
    slots: tuple[Slot, ...] = field(repr=False)
    exact: bool  # masked ≡ sliced; False if a normalization computes its statistics over the channels
    internal: bool  # no channel is on a shortcut
    reason: Reason | None  # why it is not prunable, or None
    least: int = 1  # the number of channels that must stay: 2 if the code does not work with a single one
    least_reason: Reason | None = None  # why more than one must stay, or None

    @property
    def prunable(self) -> bool:
        """Whether the channels can be cut. False for an inexact group, unless the trace was made with `allow_inexact`."""
        return self.reason is None

    @property
    def only_inexact(self) -> bool:
        """Whether the only reason that the group is not prunable is that a cut would be inexact."""
        return self.reason is not None and self.reason.kind is Kind.INEXACT

    @cached_property
    def coupled(self) -> int:
        """How many channels of one layer form one channel: for example, in a grouped convolution, the k-th of each group."""
        return max((s.index.shape[1] for s in self.slots if s.produces), default=1)

    @cached_property
    def producers(self) -> tuple[str, ...]:
        """Names of the layers that produce these channels."""
        return tuple(dict.fromkeys(owner for s in self.slots if s.produces for owner in s.owners))

    @cached_property
    def consumers(self) -> tuple[str, ...]:
        """Names of the layers that consume these channels."""
        return tuple(dict.fromkeys(owner for s in self.slots if s.consumes for owner in s.owners))

    def weights(self, model: nn.Module, bias: bool = False) -> list[Tensor]:
        """Return the weights of each layer that produces these channels, by channel: (size, weights per channel). Views if
        possible. With `bias`, the layer's bias follows as a separate (size, 1)."""
        found = []
        for slot in self.slots:
            if slot.produces:
                found.append(slot.rows(model))
                own = slot.param.rpartition(".")[0] + ".bias"
                found += [s.rows(model) for s in self.slots if bias and s.param == own]
        return found

    def filters(self, model: nn.Module, bias: bool = True) -> Tensor:
        """Return all weights that produce each channel, as one data point: (size, weights per channel), float32.

        A channel with several coupled producers is one row of all its filters; with `bias`, a producing
        layer's bias is appended to its weights (EPruner, sec. III-A).
        """
        return torch.cat([w.float() for w in self.weights(model, bias)], dim=1)


def _names(layers: Sequence[str], most: int = 3) -> str:
    more = len(layers) - most
    return ", ".join(layers[:most]) + (f" +{more}" if more > 0 else "")


def _parametrized(path: str) -> str:
    """Return the module whose parametrization this module is a part of, or the module itself."""
    return "" if path.startswith("parametrizations.") else path.partition(".parametrizations.")[0]


def parameter(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its full name."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    found = module._parameters.get(leaf)
    return found if found is not None else module._buffers[leaf]  # type: ignore[return-value]


def _whole(index: Array, n: int) -> bool:
    return index.size == n and bool((index.ravel() == np.arange(n)).all())


def by_name(found: Mapping[Any, T]) -> dict[str, T]:
    """Return the values by the names of their groups. Keys may also be the groups themselves."""
    return {key.name if isinstance(key, ChannelGroup) else key: value for key, value in found.items()}


class ChannelGraph:
    """What `sc.trace` returns: the channel groups, and the cost of the network at any widths.

    `groups` holds every group, prunable or not, in the order of first use in the network.
    """

    def __init__(
        self,
        groups: Iterable[ChannelGroup],
        cost_model: Callable[[], CostModel],
        shapes: Shapes,
        modules: Any,
        flow: Callable[[], Flow],
        random: Iterable[str] = (),
        owners: Owners | None = None,
        count: Callable[[Mapping[int, Array]], Count] = lambda kept: len,
        warnings: Iterable[str] = (),
    ) -> None:
        self.groups = tuple(groups)
        self.shapes = dict(shapes)  # of all parameters and buffers used in the trace
        self.random = tuple(dict.fromkeys(random))  # lines of code that drew random numbers in eval mode
        self.warnings = tuple(warnings)  # sentences about what was not followed
        self._modules = modules
        self._owners, self._count = owners, count
        self._make_cost, self._make_flow = cost_model, flow  # built lazily
        self._at = {g.name: i for i, g in enumerate(self.groups)}
        self.sizes = np.array([g.size for g in self.groups], dtype=np.int64)
        self.clock: Clock | None = None

    def timed(self: G, clock: Clock | None) -> G:
        """Return a copy of the graph with this latency model, which gives its costs a latency. None: without one."""
        made = copy.copy(self)
        made.clock = clock
        return made

    def __getitem__(self, name: str) -> ChannelGroup:
        """Return the group with this name, or the only group that a layer of this name produces. Raises PlanError with similar
        names if there is none, and with the names of the groups if the layer produces several."""
        return self.groups[self.index(name)]

    @cached_property
    def flow(self) -> Flow:
        """The data flow of the network: its ops in execution order, and the values that they pass on."""
        return self._make_flow()

    @cached_property
    def _cost(self) -> CostModel:
        return self._make_cost()

    def __repr__(self) -> str:
        prunable = sum(g.prunable for g in self.groups)
        return f"ChannelGraph({len(self.groups)} groups, {prunable} prunable, {self.cost().macs:,} MACs)"

    def _repr_html_(self) -> str:
        """Show the groups in a notebook: what can be cut, and why the rest cannot."""
        rows = [
            (
                g.name,
                f"{g.size:,}",
                "yes" if g.prunable else "no",
                g.reason or "",
                _names(g.producers),
                _names(g.consumers),
            )
            for g in self.groups[:LISTED]
        ]
        if (more := len(self.groups) - LISTED) > 0:
            rows.append((f"… and {more} more", "", "", "", "", ""))
        heads = ("group", "channels", "can be cut", "why not", "producers", "consumers")
        return html_table(heads, rows, caption=repr(self), right=(1,))

    def index(self, name: str) -> int:
        """Return the position of a group in `groups` and in width vectors. name: of the group, or of a layer producing it."""
        found = self._at.get(name)
        if found is not None:
            return found
        names = [g.name for g in self.groups if name in g.producers or self._first_name(name) in g.producers]
        if not names:
            known = {*self._at, *(p for g in self.groups for p in g.producers)}
            raise PlanError(f"The network has no channel group {name!r}. {nearest(name, known)}")
        if len(names) > 1:
            raise PlanError(f"{name} produces {len(names)} groups of channels: choose one of {', '.join(names)}.")
        return self._at[names[0]]

    def _first_name(self, name: str) -> str | None:
        """Return a module's first name, if it has several."""
        model = self._modules.get("")
        module = dict(model.named_modules(remove_duplicate=False)).get(name) if model is not None else None
        return next((path for path, m in self._modules.items() if m is module), None)

    def cost(self, widths: Mapping[str, int] | Array | None = None, stripes: Mapping[str, int] | None = None) -> Cost:
        """Return the MACs and parameters at these widths, from the graph alone. This takes microseconds.

        widths: `{group name: channels}`, or a vector with one width per group, which is not checked. Groups that are left out
            stay whole. A group may also be named by a layer that produces it.
        stripes: `{weight of a convolution: total number of stripes left in its filters}`, see `kernels`.
        """
        if unknown := (stripes or {}).keys() - self.kernels.keys():
            name = min(unknown)
            raise PlanError(f"{name} is not a convolution that stripes can be cut from. {nearest(name, self.kernels)}")
        if isinstance(widths, np.ndarray):
            return self._costs(widths, stripes)
        vector = self.sizes.copy()
        for name, width in (widths or {}).items():
            at = self.index(name)
            group = self.groups[at]
            least, size = group.least, group.size
            if not isinstance(width, Integral) or isinstance(width, bool) or not least <= width <= size:
                raise PlanError(
                    f"Group {name} has {size} channels: its width must be an integer in {least}…{size}, not {width!r}",
                    f" ({group.least_reason})" if group.least_reason else "", ".",
                )  # fmt: skip
            vector[at] = width
        return self._costs(vector, stripes)

    def _costs(self, widths: Array, stripes: Mapping[str, int] | None) -> Cost:
        cost = self._cost(widths, stripes)
        return cost if self.clock is None else replace(cost, latency=self.clock(widths, stripes))

    @cached_property
    def kernels(self) -> dict[str, tuple[int, ...]]:
        """Weights that stripes can be cut from, by name, with the number of filters and the kernel's size: (O, *kernel).

        These are plain convolutions (`nn.Conv1d`, `Conv2d`, `Conv3d`) with one group and zero padding that do not share their
        weight with another layer, and whose weight no other code reads.
        """
        owners: dict[int, int] = {}
        for module in self._modules.values():
            for p in module._parameters.values():
                owners[id(p)] = owners.get(id(p), 0) + 1
        found = {}
        known = self.shapes.keys() & self._cost.kernels.keys()
        # Code that reads a layer's weight by itself cannot read that of a stripe convolution.
        known -= {v.name for op in self.flow.ops for v in op.inputs if v.name != f"{op.call.module}.weight"}
        for name, module in self._modules.items():
            weight = f"{name}.weight"  # a convolution that is the model itself cannot be replaced
            if has_stripes(module) and weight in known and owners.get(id(module._parameters.get("weight"))) == 1:
                o, _, *kernel = self.shapes[weight]
                found[weight] = (o, *kernel)
        return found

    def rewrites(self, copies: Mapping[str, Array]) -> dict[tuple[str, str], Any]:
        """Return the module attributes that change, `{(module, attribute): value}`. copies: for each group, the number of
        copies of each channel, 0 if it is cut."""
        return {} if self._owners is None else self._owners.rewrites(self._count(self._by_index(copies)))

    def stale(self, kept: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """Return sentences about numbers that modules keep and that are not rewritten, although they may count channels that
        are cut. kept: the kept channels of each group."""
        copies = {name: np.zeros(self[name].size, dtype=np.int64) for name in kept}
        for name, index in kept.items():
            copies[name][list(index)] = 1
        return () if self._owners is None else self._owners.stale(self._count(self._by_index(copies)))

    def unverified(self, kept: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """Return a sentence about the groups whose cut is inexact, if there are any. kept: the kept channels of each group."""
        names = [name for name in kept if not self[name].exact]
        if not names:
            return ()
        return (
            f"The cut is inexact and was not verified: an op computes with all channels of group {_names(names)} together, "
            "such as a normalization or a mean over them.",
        )

    def _by_index(self, copies: Mapping[str, Array]) -> dict[int, Array]:
        return {self.index(name): each for name, each in copies.items()}

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The traced model's modules by name."""
        return self._modules
