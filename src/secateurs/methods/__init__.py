"""Which channels go: the protocol, the registry, the classic criteria, and one folder for each paper's system."""

from secateurs.methods.criteria import L1, L2, BNScale, Index, Random
from secateurs.methods.epruner import EPruner
from secateurs.methods.method import Criterion, Method, Task, methods, register, resolve

__all__ = [
    "L1", "L2", "BNScale", "Criterion", "EPruner", "Index", "Method", "Random", "Task", "methods", "register", "resolve",
]  # fmt: skip
