"""Parameters that no run used, in eval mode or in training. Channels that they may read must not be cut silently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateurs.graph.channels import ChannelGroup
from secateurs.graph.grouping import Grouping
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.runs import Runs

_SHOWN = 4  # names in a sentence


def kept_whole(runs: Runs, grouping: Grouping, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Return the groups. A group becomes not prunable if a part of the network that no run used may read it: the training path
    stopped before that part, and no other prunable group has the number of channels that the part reads."""
    found = list(groups)
    for head in () if runs.training.failure is None else _heads(runs):
        fitting = [g for g in _fitting(runs, grouping, head) if groups[g].prunable]
        if len(fitting) == 1:
            detail = (
                f"{head} may read it, which only runs in training, where the model needs more than the example inputs"
            )
            found[fitting[0]] = replace(groups[fitting[0]], reason=Reason(Kind.UNTRIED, detail))
    return found


def warnings(runs: Runs, grouping: Grouping, groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
    """Return sentences about what could not be followed."""
    told = []
    failure = runs.training.failure
    if failure is not None:
        first = (str(failure).strip().splitlines() or [""])[0].rstrip(".")
        told.append(
            f"In training mode the model does not run on the example inputs ({type(failure).__name__}: {first}): what "
            "runs only after that was not followed, and may not fit a cut network. Pass what the forward needs as "
            "example_targets."
        )
    alike: dict[tuple[str, ...], list[str]] = {}
    for head in _heads(runs):
        fitting = _fitting(runs, grouping, head)
        may = tuple(groups[g].name for g in fitting if groups[g].prunable)
        if may or not fitting:  # if all of its possible inputs are kept, it needs no mention
            alike.setdefault(may, []).append(head)
    for may, heads in alike.items():
        what = f" (such as {_listed(may, 'or')})" if may else ""
        told.append(
            f"No run used {_listed(heads, 'and')}: if channels that are read there{what} are cut, the network no longer runs "
            "with it. Pass example_targets if it takes part in training, or exclude what it reads."
        )
    return tuple(told)


def _listed(names: Iterable[str], word: str) -> str:
    names = list(names)
    if len(names) > _SHOWN:
        return f"{', '.join(names[:_SHOWN])} {word} {len(names) - _SHOWN} more"
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _heads(runs: Runs) -> list[str]:
    """Return the parts of the network that no run used: the outermost modules whose parameters are all idle, or a parameter."""
    idle = set(runs.training.unused)
    found: dict[str, None] = {}
    for name in runs.training.unused:
        head = name
        path = name.rpartition(".")[0]
        while path and all(n in idle for n in runs.params if n.startswith(f"{path}.") and _counts(runs, n)):
            head, path = path, path.rpartition(".")[0]
        found[head] = None
    return list(found)


def _counts(runs: Runs, name: str) -> bool:
    return max(runs.shapes[name], default=1) > 1


def _fitting(runs: Runs, grouping: Grouping, head: str) -> list[int]:
    """Return the groups whose channels this part may read, since they are on an axis as long as its inputs."""
    wanted = _widths(runs, head)
    found: dict[int, None] = {}
    for axis in grouping.tape.axes:
        if len(axis.labels) in wanted:
            groups = np.unique(grouping.of_label[axis.labels])
            found.update(dict.fromkeys(groups[groups >= 0].tolist()))
    return list(found)


def _widths(runs: Runs, head: str) -> set[int]:
    """Return the numbers of channels that a part of the network may read: those that its first layer reads, and those that
    other layers read but no layer of the part makes."""
    layers = [m for path, m in runs.modules.items() if f"{path}.".startswith(f"{head}.") and _layer(m)]
    made = {_made(m) for m in layers}
    reads = [_read(m) for m in layers]
    if not reads:
        return set(runs.shapes.get(head, ())) - {1} if head in runs.params else set()
    return {reads[0], *(n for n in reads if n not in made)}


def _layer(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd | nn.Linear) or (isinstance(module, _NormBase) and module.affine)


def _read(module: nn.Module) -> int:
    if isinstance(module, _ConvNd):
        return module.in_channels
    return module.in_features if isinstance(module, nn.Linear) else module.num_features  # type: ignore[return-value]


def _made(module: nn.Module) -> int:
    if isinstance(module, _ConvNd):
        return module.out_channels
    return module.out_features if isinstance(module, nn.Linear) else 0
