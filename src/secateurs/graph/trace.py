"""`trace` creates the channel graph of a model from example inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from secateurs.errors import TraceError
from secateurs.graph import idle
from secateurs.graph.channels import ChannelGraph
from secateurs.graph.check import Check
from secateurs.graph.flow import Flow
from secateurs.graph.grouping import Grouping
from secateurs.graph.inputs import check_model
from secateurs.graph.reasons import Reason
from secateurs.graph.runs import Runs
from secateurs.graph.tape import Place
from secateurs.graph.wrappers import check_plain

G = TypeVar("G", bound=ChannelGraph)
_RETRIES = 4  # interpretations of an ambiguous split to try before its channels are frozen


@torch.inference_mode(False)  # in inference mode, ops arrive as conv2d and not as convolution
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    allow_inexact: bool = False,
    example_targets: Any = None,
    kind: type[G] = ChannelGraph,  # type: ignore[assignment]
) -> G:
    """Find the channels of a network: run it once in eval mode and follow every channel through every op.

    example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments, as the model takes them.
    allow_inexact: make channels prunable even if a normalization computes its statistics over them (layer norm over
        channels, group norm). A cut then changes more than the cut channels.
    example_targets: what the model's forward takes in training in addition to the inputs: a tuple of further positional
        arguments, a dict of keyword arguments, or a single argument of any other type.

    The run needs shapes, not values: it uses meta tensors, and real ones if the model needs values (for example, if its
    control flow depends on data). The model is not modified. An op without a rule does not stop the trace: it
    freezes its channels, and the group's `reason` says so.

    Raises TraceError if the model cannot be run on these inputs.
    """
    check_model(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "The model is a TorchScript module, whose layers cannot be traced: "
            "trace the Python model that it was made from."
        )
    check_plain(model)
    runs = Runs(model, example_inputs, example_targets)
    check = Check(runs, allow_inexact)
    for attempt in range(_RETRIES + 1):
        grouping = runs.follow()
        broken = check.broken(grouping)
        again = {p.key for p in _doubtful(grouping, broken.tried) if runs.choices.get(p.key, 0) + 1 < p.options}
        if not again or attempt == _RETRIES:
            break
        for key in again:
            runs.choices[key] = runs.choices.get(key, 0) + 1
    params = runs.params
    seen = {a.param: runs.shapes[a.param] for a in grouping.tape.axes}
    groups = idle.kept_whole(runs, grouping, grouping.build(allow_inexact, broken.said | broken.tried, broken.pairs))
    recorder = grouping.tape.recorder
    assert recorder is not None
    return kind(
        groups,
        lambda: grouping.cost_model(params),
        seen,
        runs.modules,
        recorder.flow,
        grouping.tape.random,
        grouping.owners,
        grouping.count,
        idle.warnings(runs, grouping, groups),
    )


def flow(model: nn.Module, example_inputs: Any) -> Flow:
    """Return the data flow of a network, without its channels, from one run in eval mode. The model is not modified. If you
    trace the network anyway, `graph.flow` is the same.

    Raises TraceError if the model cannot be run on these inputs.
    """
    check_model(model)
    return Runs(model, example_inputs).flow()


def _doubtful(grouping: Grouping, tried: Mapping[int, Reason]) -> Iterator[Place]:
    """Yield the places with several interpretations where the chosen one failed or left nothing to cut."""
    frozen = grouping.classes.frozen
    for place in grouping.tape.places:
        if (frozen[place.labels] >= 0).all() or grouping.groups_at(place.labels) & tried.keys():
            yield place
