"""Which groups of a plan it is that keep a cut from verifying. Slow, and only asked for when that has happened."""

from __future__ import annotations

from collections.abc import Callable

from secateurs.errors import PlanError
from secateurs.surgery.plan import Plan, PrunableGraph

_TRIALS = 40  # partial cuts that are tried at most
_NAMED = 3  # groups that are named at most


def culprits(graph: PrunableGraph, plan: Plan, fails: Callable[[Plan], bool]) -> str:
    """The end of an error message: the groups whose cut alone `fails`, found by halving, and what to do."""
    trials = 0

    def part(names: list[str]) -> Plan:
        return graph.plan({n: plan.groups[n] for n in names}, stripes=plan.stripes, allow_inexact=True)

    def search(names: list[str], known: bool) -> list[list[str]]:
        """Sets of groups, none of which can be made smaller. known: that these fail together."""
        nonlocal trials
        if not names or len(found) >= _NAMED or trials >= _TRIALS:
            return []
        if not known:
            trials += 1
            if not fails(part(names)):
                return []
        if len(names) == 1:
            found.append(names)
            return [names]
        half = len(names) // 2
        smaller = search(names[:half], False) + search(names[half:], False)
        return smaller or ([names] if known else [])

    found: list[list[str]] = []
    try:
        if part(list(plan.groups)) != plan:
            return "The plan is not what a trace of this model makes of its selection: it was changed, or is another's."
        sets = search(list(plan.groups), True)
    except PlanError as error:
        return f"A trace of this model does not allow the plan: {error}"
    names = [name for group in sets for name in group]
    if not names or len(names) > 2 * _NAMED:
        return f"It takes several of its {len(plan.groups)} groups together."
    more = " and perhaps others" if len(found) >= _NAMED else ""
    which = f"group {names[0]}" if len(names) == 1 else f"groups {', '.join(names)}{more}"
    return (
        f"It comes from cutting {which}: leave that whole, or look in the code for what depends on how many channels "
        f"there are. If an op's rule is wrong, sc.register_rule(…, replace=True) mends it."
    )
