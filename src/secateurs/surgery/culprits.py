"""Which groups of a plan it is that keep a cut from verifying. Slow, and only asked for when that has happened."""

from __future__ import annotations

from collections.abc import Callable

from secateurs.errors import PlanError
from secateurs.plans.plan import Plan, PrunableGraph

_TRIALS = 40  # partial cuts that are tried at most
_NAMED = 3  # groups that are named at most


def culprits(graph: PrunableGraph, plan: Plan, fails: Callable[[Plan], bool]) -> str:
    """The end of an error message: the groups whose cut alone `fails`, found by halving, and what to do."""

    def part(names: list[str]) -> Plan:
        return graph.plan({n: plan.groups[n] for n in names}, stripes=plan.stripes, allow_inexact=True)

    try:
        if part(list(plan.groups)) != plan:
            return "The plan is not what a trace of this model makes of its selection: it was changed, or is another's."
        which = blamed(list(plan.groups), lambda names: fails(part(names)))
    except PlanError as error:
        return f"A trace of this model does not allow the plan: {error}"
    if which is None:
        return f"It takes several of its {len(plan.groups)} groups together."
    return (
        f"It comes from cutting {which}: leave that whole, or look in the code for what depends on how many channels "
        f"there are. If an op's rule is wrong, sc.register_rule(…, replace=True) mends it."
    )


def blamed(groups: list[str], fails: Callable[[list[str]], bool]) -> str | None:
    """'group a' or 'groups a, b': those of these groups, which fail together, that fail by themselves; None if it takes
    several."""
    trials = 0
    found: list[list[str]] = []

    def search(names: list[str], known: bool) -> list[list[str]]:
        """Sets of groups, none of which can be made smaller. known: that these fail together."""
        nonlocal trials
        if not names or len(found) >= _NAMED or trials >= _TRIALS:
            return []
        if not known:
            trials += 1
            if not fails(names):
                return []
        if len(names) == 1:
            found.append(names)
            return [names]
        half = len(names) // 2
        smaller = search(names[:half], False) + search(names[half:], False)
        return smaller or ([names] if known else [])

    names = [name for group in search(groups, True) for name in group]
    if not names or len(names) > 2 * _NAMED:
        return None
    more = " and perhaps others" if len(found) >= _NAMED else ""
    return f"group {names[0]}" if len(names) == 1 else f"groups {', '.join(names)}{more}"
