"""Find the groups of a plan whose cut fails to verify. Slow, and only called after a failure."""

from __future__ import annotations

from collections.abc import Callable

from secateurs.errors import PlanError
from secateurs.plans.plan import Plan, PrunableGraph

_TRIALS = 40  # maximum number of partial cuts to try
_NAMED = 3  # maximum number of groups to name


def culprits(graph: PrunableGraph, plan: Plan, fails: Callable[[Plan], bool]) -> str:
    """Return the end of an error message: the groups whose cut `fails` on its own, found by bisection, and what to do."""

    if not plan.groups:
        return (
            f"The cause is the cut of stripes from {', '.join(plan.stripes)}."
            if plan.stripes
            else "Nothing is cut by it."
        )

    def part(names: list[str]) -> Plan:
        return graph.plan({n: plan.groups[n] for n in names}, stripes=plan.stripes, allow_inexact=True)

    try:
        if part(list(plan.groups)) != plan:
            return (
                "The plan differs from the one that a trace of this model creates for its "
                "selection: it was edited, or is for another model."
            )
        which = blamed(list(plan.groups), lambda names: fails(part(names)))
    except PlanError as error:
        return f"The plan is not valid for a trace of this model: {error}"
    if which is None:
        return f"The failure needs several of its {len(plan.groups)} groups together."
    return (
        f"The cause is the cut of {which}: keep it whole, or check the model's code "
        "for a dependency on the number of channels. "
        f"If an op's rule is wrong, replace it with sc.register_rule(…, replace=True)."
    )


def blamed(groups: list[str], fails: Callable[[list[str]], bool]) -> str | None:
    """Return 'group a' or 'groups a, b', the groups that fail on their own. All groups together must fail. None if the failure
    needs several of them."""
    trials = 0
    found: list[list[str]] = []

    def search(names: list[str], known: bool) -> list[list[str]]:
        """Return minimal sets of groups that fail. known: whether it is known that these fail together."""
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
