"""Plans, self-contained and immutable descriptions of what to keep of a network, and the graphs that create them."""

from secateurs.plans.plan import Plan, PrunableGraph, trace

__all__ = ["Plan", "PrunableGraph", "trace"]
