"""Cutting a network: plans, the cut itself, its masked twin, and the proof that the two agree."""

from secateurs.surgery.cut import apply, cut_, mask
from secateurs.surgery.plan import Plan, PrunableGraph, trace
from secateurs.surgery.reset import reinitialise
from secateurs.surgery.verify import verify

__all__ = ["Plan", "PrunableGraph", "apply", "cut_", "mask", "reinitialise", "trace", "verify"]
