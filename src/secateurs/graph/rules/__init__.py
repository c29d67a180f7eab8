"""The effect of each op on the labels of its operands: one small function per op family.

A rule is called as `rule(t, *args, **kwargs)` after the op has run, with the op's own arguments; `t` is the running trace
(`t.labels(x)`, `t.axis(x, i)`, `t.unify(…)`, `t.freeze(…)`, `t.out` …). It returns the labels of the output: a dict
`{axis: labels}`, where labels has one integer per index of that axis, or a list of such dicts if the op has several
outputs. None means that the output carries no channels.
"""

# Importing the families registers their rules.
from secateurs.graph.rules import (
    attention,
    contractions,
    detection,
    indexing,
    movement,
    pointwise,
    recurrent,
    reductions,
)
from secateurs.graph.rules.registry import Rule, find, register_rule, rule

__all__ = [
    "Rule", "attention", "contractions", "detection", "find", "indexing", "movement", "pointwise", "recurrent", "reductions",
    "register_rule", "rule",
]  # fmt: skip
