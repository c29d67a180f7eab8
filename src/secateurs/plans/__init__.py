"""What stays of a network: plans, self-contained and immutable, and the graphs that make them."""

from secateurs.plans.plan import Plan, PrunableGraph, trace

__all__ = ["Plan", "PrunableGraph", "trace"]
