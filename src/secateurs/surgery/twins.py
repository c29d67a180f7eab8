"""Runs of two networks that should compute the same: the masked network leads, the sliced one follows.

Networks that agree up to rounding may still return different results: if two boxes suppress each other at almost equal scores,
a difference of 1e-7 decides which one remains. So the inputs of a choice (a sort, a comparison, a suppression, a rounding) are
compared, and the follower then continues with the leader's choice. Random numbers are drawn from the same seeds. Each run also
notes what it reads: a copy must not read the parameters of the network that it was made from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.devices import full_precision
from secateurs.graph.channels import named_tensors
from secateurs.graph.counter import formulas
from secateurs.graph.dispatch import DispatchMode
from secateurs.graph.families import argument, draws
from secateurs.graph.frames import caller
from secateurs.graph.inputs import call, map_tensors, to_model_device
from secateurs.graph.leaves import tensors, values
from secateurs.graph.modes import unfused
from secateurs.seeds import preserve_rng_state, seed_all
from secateurs.surgery.compare import apart, telling
from secateurs.surgery.reordered import Reordered

Storages = Mapping[int, tuple[str, ...]]  # the names of the tensors in a storage

_INDEXED = frozenset({"topk", "sort", "max", "min", "kthvalue", "median", "nanmedian", "mode", "cummax", "cummin"})
_LITERAL = torch.ops.aten.lift_fresh.default  # torch.tensor(numbers)
_CLOSE = 1e-2  # if the inputs of a choice are this close, the follower makes the leader's choice
_JUMPS = _INDEXED | {  # the ops in _INDEXED count only where they return values and their indices
    "argmax", "argmin", "argsort", "nonzero", "count_nonzero", "searchsorted", "bucketize", "_unique2", "unique_dim",
    "unique_consecutive", "nms", "multinomial", "gt", "ge", "lt", "le", "eq", "ne", "floor", "ceil", "round", "trunc", "sign",
    "floor_divide", "_local_scalar_dense", "equal", "is_nonzero",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """An op whose result jumps: the shapes of its inputs, its floating-point inputs, and its result."""

    op: Any
    shapes: tuple[torch.Size, ...]
    fed: tuple[Tensor, ...] = ()
    result: Any = None


@dataclass
class Run:
    """What a run returned, read, drew and chose."""

    outputs: list[Tensor] = field(default_factory=list)
    macs: int = 0
    read: set[str] = field(default_factory=set)  # of its own parameters and buffers
    foreign: dict[str, None] = field(default_factory=dict)  # of another network's
    choices: list[Choice] = field(default_factory=list)
    draws: list[tuple[torch.Size, ...]] = field(default_factory=list)
    uneven: dict[str, None] = field(default_factory=dict)  # lines that draw numbers of another shape than the leader's
    # The largest relative difference from the leader in the inputs of a choice that the outputs depend on.
    error: float = 0.0
    depends: bool = False  # whether an output was seen to depend on the network's tensors
    telling: bool = False  # whether an output, or an input of such a choice, is not empty or zero


def run(
    model: nn.Module,
    example_inputs: Any,
    dtype: torch.dtype,
    *,
    other: nn.Module | None = None,
    leader: Run | None = None,
    witness: bool = False,
    order: int | None = None,
) -> Run:
    """Run a model in eval mode, in this precision. The model stays in that mode and precision; the caller's inputs and the
    global random state do not change. In float64, tensors that the network's code creates in float32 or converts to float32
    are float64, too.

    other: the network that the model is a copy of, whose tensors it should not read. leader: the run that this one follows.
    witness: also compare the output of every layer that is whole in both networks. order: a seed for the order in which
    products are summed; None for the usual order.
    """
    model = cast_(model, dtype).eval()
    inputs = map_tensors(lambda x: cast(x, dtype).clone(), to_model_device(model, copy.copy(example_inputs)))
    own = _storages(named_tensors(model))
    foreign = {} if other is None else {s: n for s, n in _storages(named_tensors(other)).items() if s not in own}
    watch = _Watch(own, foreign, leader, witness, dtype is torch.float64)
    with torch.no_grad(), full_precision(), unfused(), preserve_rng_state():
        seed_all("verify")
        try:
            with watch, nullcontext() if order is None else Reordered(order):
                out = call(model, inputs)
        finally:
            watch.restore()
    watch.run.outputs = [x.detach() for x in values(out)]
    watch.finish(tensors(out))
    return watch.run


def cast_(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a model's floating-point and complex tensors to this precision, in place, if there are any to convert."""
    if any(cast(x, dtype) is not x for x in named_tensors(model).values()):
        model._apply(lambda x: cast(x, dtype))
    return model


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor to this precision. Complex numbers stay complex, and integers do not change."""
    if x.is_complex():
        return x.to(dtype.to_complex())
    return x.to(dtype) if x.is_floating_point() else x


class _Watch(DispatchMode):
    """Sees every op of a run."""

    def __init__(self, own: Storages, foreign: Storages, leader: Run | None, witness: bool, double: bool) -> None:
        super().__init__()
        self.run, self._leader, self._witness, self._double = Run(), leader, witness, double
        self._own, self._foreign, self._formulas = own, foreign, formulas()
        # For each choice, the difference of its inputs, and whether comparing them shows anything.
        self._fed: list[tuple[float, bool]] = []
        self._always = 0  # choices that count whatever the outputs depend on, as bits
        self._saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._generators: dict[int, tuple[torch.Generator, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._double and kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        given = [x for a in (*args, *kwargs.values()) for x in (a if isinstance(a, list | tuple) else (a,))]
        inputs = [x for x in given if isinstance(x, Tensor)]
        if any(x.is_meta for x in inputs):
            return func(*args, **kwargs)
        basis = self._reads(inputs)
        drawn = draws(func, args, kwargs)
        if drawn:
            self._seed(given)
        jumps = tuple(x for x in inputs if x.is_floating_point()) if _jumps(func, kwargs) else ()
        in_place = func._schema.is_mutable
        if in_place:
            self._save(inputs)
        fed = _cloned(jumps) if self._leader is None or in_place else jumps
        out = func(*args, **kwargs)
        if self._double and (not inputs or func is _LITERAL) and isinstance(out, Tensor) and out.dtype is torch.float32:
            out = out.double()
        packet = func.overloadpacket
        if packet in self._formulas:
            self.run.macs += self._formulas[packet](*args, **kwargs, out_val=out) // 2
            if self._witness and basis is not None and isinstance(out, Tensor):
                self._always |= 1 << len(self.run.choices)
                self._note(func, [out], _cloned((out,)), None)
        if drawn:
            self._drawn(out)
        if fed:
            basis = None if basis is None else basis | 1 << len(self.run.choices)
            due = self._note(func, inputs, fed, out)
            if due is not None:
                out = _followed(func, args, kwargs, out, due)
        if basis is not None and not _only_shape(func):
            for x in out if isinstance(out, list | tuple) else (out,):
                if isinstance(x, Tensor):
                    self._mark(x, basis, in_place)
        return out

    # -- what is read --------------------------------------------------------------------------------------------------

    def _reads(self, inputs: list[Tensor]) -> int | None:
        """Note the parameters and buffers among these inputs. Returns the choices that the inputs depend on, as bits; None if
        no input depends on this network's own tensors."""
        basis = None
        for x in inputs:
            if (own := self._basis(x)) is not None:
                basis = (basis or 0) | own
            elif (at := _storage(x)) in self._own:
                self.run.read.update(self._own[at])
                basis = basis or 0
            elif at in self._foreign:
                self.run.foreign |= dict.fromkeys(self._foreign[at])
        return basis

    def _basis(self, x: Tensor) -> int | None:
        run, basis = getattr(x, "_secateurs_run", (None, None))
        return basis if run is self.run else None

    def _mark(self, x: Tensor, basis: int, written: bool) -> None:
        for one in (x, x._base) if written and x._base is not None else (x,):
            if _storage(one) not in self._own:
                one._secateurs_run = self.run, (self._basis(one) or 0) | basis  # type: ignore[attr-defined]

    def _save(self, inputs: list[Tensor]) -> None:
        """Save the network's own tensors before an op that may write to them."""
        for x in inputs:
            if (at := _storage(x)) in self._own and at not in self._saved:
                self._saved[at] = x.untyped_storage(), x.untyped_storage().clone()

    def finish(self, outputs: list[Tensor]) -> None:
        """Sum up what the run showed about these outputs."""
        found = [basis for x in outputs if (basis := self._basis(x) if _storage(x) not in self._own else 0) is not None]
        self.run.depends = bool(found)
        relevant = self._always
        for basis in found:
            relevant |= basis
        for i, (error, tells) in enumerate(self._fed):
            if relevant >> i & 1 or not found:  # if the outputs went through NumPy, all choices count
                self.run.error = max(self.run.error, error)
                self.run.telling = self.run.telling or tells
        self.run.telling = self.run.telling or any(map(telling, self.run.outputs))

    # -- random numbers ------------------------------------------------------------------------------------------------

    def _seed(self, given: list[Any]) -> None:
        """Seed each draw separately, so that it does not depend on how many numbers earlier draws took."""
        seed_all("verify", len(self.run.draws))
        for generator in given:
            if isinstance(generator, torch.Generator):
                self._generators.setdefault(id(generator), (generator, generator.get_state()))
                generator.manual_seed(len(self.run.draws))

    def _drawn(self, out: Any) -> None:
        shapes, at = tuple(x.shape for x in tensors(out)), len(self.run.draws)
        self.run.draws.append(shapes)
        if self._leader is not None and self._leader.draws[at : at + 1] != [shapes]:
            self.run.uneven[caller()] = None

    def restore(self) -> None:
        """Restore the network's tensors that it wrote to, and the state of the generators that it used."""
        for storage, saved in self._saved.values():
            storage.copy_(saved)
        for generator, state in self._generators.values():
            generator.set_state(state)

    # -- choices -------------------------------------------------------------------------------------------------------

    def _note(self, func: Any, inputs: list[Tensor], fed: tuple[Tensor, ...], out: Any) -> Any:
        """Note a choice. For a follower, compare its inputs and return the leader's result; None if no result fits."""
        shapes, at = tuple(x.shape for x in inputs), len(self.run.choices)
        tells = any(map(telling, fed))
        if self._leader is None:
            self.run.choices.append(Choice(func, shapes, fed, _cloned(out)))
            self._fed.append((0.0, tells))
            return None
        self.run.choices.append(Choice(func, shapes))
        due = self._leader.choices[at] if at < len(self._leader.choices) else None
        if due is None or due.op is not func or due.shapes != shapes:  # its shape depends on cut channels
            self._fed.append((0.0, False))
            return None
        error = max(apart(a, b) for a, b in zip(fed, due.fed, strict=True))
        self._fed.append((error, tells))
        return due.result if error <= _CLOSE else None


def _jumps(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a small difference in an op's inputs may cause a large one in its result."""
    jumps, setting = _jumping(func)
    if setting == "dtype":
        dtype = kwargs.get("dtype")
        return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)
    return jumps if setting is None else kwargs.get(setting) is not None


@cache
def _jumping(func: Any) -> tuple[bool, str | None]:
    """Return whether an op's result may jump, and the argument that decides it, if there is one."""
    name = func.overloadpacket.__name__.rstrip("_")
    if name in ("_to_copy", "div"):
        return False, "dtype" if name == "_to_copy" else "rounding_mode"
    return name in _JUMPS and (name not in _INDEXED or len(func._schema.returns) == 2), None


@cache
def _only_shape(func: Any) -> bool:
    """Whether an op uses the shape of a tensor, but not its values."""
    name = func.overloadpacket.__name__
    return name.startswith("new_") or name.endswith("_like")


def _followed(func: Any, args: Any, kwargs: dict[str, Any], out: Any, due: Any) -> Any:
    """Put the leader's result in place of the follower's. Where it consists of indices, the values are the follower's own."""
    if isinstance(out, list | tuple):
        if func.overloadpacket.__name__ in _INDEXED:
            x, dim, index = args[0], argument(func, args, kwargs, "dim", -1), due[1]
            if x.ndim:
                wide = index if index.ndim == x.ndim else index.unsqueeze(dim)
                own = x.gather(dim, wide)
                due = own if index.ndim == x.ndim else own.squeeze(dim), index
        return tuple(map(_put, out, due))
    return _put(out, due)


def _put(out: Any, due: Any) -> Any:
    if not isinstance(out, Tensor):
        return due
    return out.copy_(due) if out.shape == due.shape else due.clone()


def _cloned(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.detach().clone()
    return tuple(map(_cloned, out)) if isinstance(out, list | tuple) else out


def _storages(named: Mapping[str, Tensor]) -> Storages:
    found: dict[int, tuple[str, ...]] = {}
    for name, x in named.items():
        if at := _storage(x):
            found[at] = (*found.get(at, ()), name)
    return found


def _storage(x: Tensor) -> int:
    try:
        return x.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # the tensor has no storage, such as a sparse one
        return 0
