"""What a method has kept, cut further to a tighter budget: its weakest channels and stripes go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from secateurs.methods.criteria import norms
from secateurs.methods.method import Method, Task
from secateurs.methods.select import Widths, select_within_budget
from secateurs.methods.selection import Channels, Selection


def trimming(task: Task, selection: Selection, proxy: Method) -> Callable[[Task], Selection]:
    """`trimmed`, for tasks that differ from this one in their budget only."""
    select = proxy.selector(silent(task)) if selection.stripes else proxy.select
    return lambda tight: trimmed(tight, selection, select)


def silent(task: Task) -> Task:
    """The same, for what is no part of the history."""
    return replace(task, log=lambda entry: None)


def trimmed(task: Task, selection: Selection, proxy: Callable[[Task], Selection | Channels]) -> Selection:
    """A part of a selection that is within a tighter budget: its weakest channels go, and of stripes the weakest ones."""
    if selection.stripes:
        more = Selection.of(proxy(task))
        channels = dict(selection.channels)
        for group in task.groups:
            if group.name in more.channels:
                own = np.array(list(channels.get(group.name, range(group.size))), dtype=np.int64)
                both = np.isin(own, np.array(list(more.channels[group.name])))
                both[np.flatnonzero(~both)[: max(0, task.bound(group).least - int(both.sum()))]] = True
                channels[group.name] = own[both]
        stripes = {name: more.stripes.get(name, True) & kept for name, kept in selection.stripes.items()}
        return Selection(channels, stripes, selection.nodes)
    kept = {name: np.array(sorted(own), dtype=np.int64) for name, own in selection.channels.items()}
    groups = [g for g in task.groups if g.name in kept]
    bounds = dict(task.bounds)
    scores = {}
    for group in groups:
        bound = task.bound(group)
        most = min(bound.most, len(kept[group.name]))
        bounds[group.name] = replace(bound, most=most, least=min(bound.least, most))
        size = norms(group, task.model, 2).detach().double().cpu().numpy()
        scores[group.name] = np.full(group.size, -1.0)
        scores[group.name][kept[group.name]] = (size / max(size.mean(), 1e-12))[kept[group.name]]
    found = select_within_budget(Widths(task.graph, groups, task.budget, bounds=bounds), scores)
    return Selection({**selection.channels, **found}, selection.stripes, selection.nodes)
