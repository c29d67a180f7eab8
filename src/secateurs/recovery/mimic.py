"""Simultaneous mimicking: train the cut network's feature maps to match the original's, at several nodes at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateurs.data.structure import kind_of
from secateurs.errors import ConfigError, Setting, TrainingError
from secateurs.graph.inputs import tensors
from secateurs.recovery.features import OUTPUT, Capture, FeatureMap, by_name, check_names, feature_maps, made_of
from secateurs.recovery.recipes import Mimic
from secateurs.recovery.teacher import TeacherHook
from secateurs.training.batches import Batch
from secateurs.training.losses import heads
from secateurs.training.run import TrainingRun

log = logging.getLogger("secateurs")


# -- distances between two maps: (N, C, *) and (N, C, *) → mean over images and pixels --------------------------------------


def mse(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference (eq. 9; a sum there, and called MSE)."""
    return F.mse_loss(student.float(), teacher.float())


def l1(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean absolute difference (the paper's LASSO regression)."""
    return F.l1_loss(student.float(), teacher.float())


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(P ‖ P') of the channels' softmax at each pixel, P the teacher's (eq. 10-14)."""
    p, q = _log_softmax(teacher), _log_softmax(student)
    return F.kl_div(q, p, reduction="sum", log_target=True) / (p.numel() / p.shape[-1])


def js(teacher: Tensor, student: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the same distributions: ½KL(P ‖ M) + ½KL(P' ‖ M), M = ½(P + P')."""
    p, q = _log_softmax(teacher), _log_softmax(student)
    middle = torch.logaddexp(p, q) - 0.6931471805599453
    total = F.kl_div(middle, p, reduction="sum", log_target=True) + F.kl_div(
        middle, q, reduction="sum", log_target=True
    )
    return 0.5 * total / (p.numel() / p.shape[-1])


def _log_softmax(x: Tensor) -> Tensor:
    """Over channels, which are the last axis of the result: with channels_last this is their memory order."""
    return F.log_softmax(x.movedim(1, -1).float(), dim=-1)


def pairs_of(teacher: Any, student: Any) -> list[tuple[Tensor, Tensor]]:
    """The tensors that two networks return, in pairs: all of them, or where they do not return the same ones, such as
    auxiliary classifiers in training only, the logits. Raises ConfigError if they have nothing in common."""
    theirs, ours = ([x for x in tensors(y) if x.ndim and x.is_floating_point()] for y in (teacher, student))
    if ours and [x.shape for x in ours] == [x.shape for x in theirs]:
        return list(zip(theirs, ours, strict=True))
    try:
        logits = heads(teacher)[0], heads(student)[0]
    except TrainingError:
        logits = None
    if logits is None or logits[0].shape != logits[1].shape:
        raise ConfigError(
            f"The network's output cannot be mimicked: it returns {kind_of(student)} in training and "
            f"{kind_of(teacher)} in evaluation, and their tensors differ.",
            hint=("Name the feature maps to mimic, ", Setting("nodes", of=Mimic), "."),
        )
    return [logits]


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "js": js, "mse": mse, "l1": l1}
DIVERGENCES = ("kl", "js")


# -- which nodes --------------------------------------------------------------------------------------------------------


def choose(
    recipe: Mimic, student: nn.Module, teacher: nn.Module, example_inputs: Any, wanted: Sequence[str] = ()
) -> tuple[str, ...]:
    """The nodes to mimic: those that the recipe names, else those `wanted` by the method that kept their shape, else
    evenly spaced stage ends that kept their shape. A divergence needs two, a distance one. The network's output is added if
    there are not enough others, or if the cut changed layers after the last of them.

    Raises ConfigError for a named node that is unknown or that the cut has changed.
    """
    before, after = feature_maps(teacher, example_inputs), by_name(feature_maps(student, example_inputs))
    same = [m for m in before if m.name in after and after[m.name].shape == m.shape]
    if recipe.nodes is not None:
        check_names(teacher, recipe.nodes)
        for node in recipe.nodes:
            _must_be_same(node, before, after, same)
        return recipe.nodes
    known, enough = by_name(same), 2 if recipe.function in DIVERGENCES else 1
    found = tuple(node for node in wanted if node in known)
    if len(found) < enough:
        found = tuple(m.name for m in _spread(_stage_ends(same), recipe.count))
    if len(found) < enough or _cut_behind(student, teacher, found, example_inputs):
        log.warning("few feature maps kept their shape in the cut: mimicking the network's output, too")
        found = (*found, OUTPUT)
    return found


def _cut_behind(student: nn.Module, teacher: nn.Module, nodes: Sequence[str], example_inputs: Any) -> bool:
    """Whether the cut changed layers that none of these nodes depends on, but the output does."""
    shapes = {name: p.shape for name, p in teacher.named_parameters()}
    covered = {id(p) for p in made_of(student, nodes, example_inputs)}
    reached = {id(p) for p in made_of(student, [OUTPUT], example_inputs)} - covered
    return any(id(p) in reached and p.shape != shapes.get(name) for name, p in student.named_parameters())


def _must_be_same(
    node: str, before: Sequence[FeatureMap], after: Mapping[str, FeatureMap], same: Sequence[FeatureMap]
) -> None:
    if node == OUTPUT:
        return
    known = by_name(before)
    if node not in known:
        raise ConfigError(
            f"Node {node!r} cannot be mimicked: it runs more than once, or does not return an (N, C, …) tensor."
        )
    if node in after and after[node].shape == known[node].shape:
        return
    now = "x".join(map(str, after[node].shape[1:])) if node in after else "nothing"
    place = before.index(known[node])
    near = sorted(same, key=lambda m: abs(before.index(m) - place))[:3]
    hint = (
        f"Nodes near it that kept their shape: {', '.join(m.name for m in near)}."
        if near
        else "No node kept its shape."
    )
    raise ConfigError(
        f"Node {node!r} cannot be mimicked: its shape was {'x'.join(map(str, known[node].shape[1:]))}, "
        f"and is {now} after the cut. {hint}"
    )


def _stage_ends(maps: Sequence[FeatureMap]) -> list[FeatureMap]:
    """The last map of each shape, after a non-linearity if one of that shape is; and the last map."""
    maps = [m for m in maps if len(m.shape) > 3 and m.area > 1]
    ends: dict[tuple[int, ...], FeatureMap] = {}
    for m in maps:
        if m is maps[-1] or m.shape not in ends or m.activated or not ends[m.shape].activated:
            ends.pop(m.shape, None)  # so that ends are in the order in which stages end
            ends[m.shape] = m
    return list(ends.values())


def _spread(maps: list[FeatureMap], count: int) -> list[FeatureMap]:
    """`count` of them, evenly spaced, always including the last."""
    if len(maps) <= count:
        return maps
    step = len(maps) / count
    return [maps[round((i + 1) * step) - 1] for i in range(count)]


# -- training -----------------------------------------------------------------------------------------------------------


class Mimicking(TeacherHook):
    """The loss is the mean over nodes of the distance of the two networks' maps (eq. 8); labels are not used.

    Layers that the nodes do not depend on (the classifier) are frozen, including batch-norm statistics.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, recipe: Mimic, example_inputs: Any, wanted: Sequence[str] = ()
    ) -> None:
        nodes = choose(recipe, student, teacher, example_inputs, wanted)
        super().__init__(student, teacher)
        self.nodes, self.function = nodes, FUNCTIONS[recipe.function]
        self.divergence = recipe.function in DIVERGENCES
        needed = {id(p) for p in made_of(student, nodes, example_inputs)}
        self.frozen = [p for p in student.parameters() if p.requires_grad and id(p) not in needed]
        for p in self.frozen:
            p.requires_grad_(False)
        idle = {id(p) for p in student.parameters()} - needed
        self._still = [
            m for m in student.modules() if isinstance(m, _NormBase) and any(id(p) in idle for p in m.parameters())
        ]
        self._ours, self._theirs = Capture(student, nodes), Capture(self.teacher, nodes)

    def epoch_start(self, engine: TrainingRun) -> None:
        for module in self._still:
            module.eval()

    def before_batch(self, engine: TrainingRun, batch: Batch) -> None:
        super().before_batch(engine, batch)
        self._ours.watch()

    def loss(self, engine: TrainingRun, loss: Tensor, outputs: Any, targets: Tensor) -> Tensor:
        self._theirs.watch()
        self.teacher_outputs(engine)
        maps = zip(self.nodes, self._theirs.take(), self._ours.take(), strict=True)
        pairs = [pair for node, t, s in maps for pair in (pairs_of(t, s) if node == OUTPUT else [(t, s)])]
        return torch.stack([self._distance(t, s) for t, s in pairs]).mean()

    def _distance(self, teacher: Tensor, student: Tensor) -> Tensor:
        # the softmax of a single channel is constant
        alone = self.divergence and (teacher.ndim < 2 or teacher.shape[1] < 2)
        return (mse if alone else self.function)(teacher, student)

    def epoch_end(self, engine: TrainingRun, metrics: dict[str, Any]) -> None:
        metrics["nodes"] = list(self.nodes)

    def state(self) -> dict[str, Any]:
        return {"nodes": list(self.nodes)}

    def load(self, state: dict[str, Any]) -> None:
        if state["nodes"] != list(self.nodes):
            raise ConfigError(f"The checkpoint was saved with other nodes: {state['nodes']}, now {list(self.nodes)}.")

    def close(self) -> None:
        super().close()
        self._ours.close()
        for p in self.frozen:
            p.requires_grad_(True)
