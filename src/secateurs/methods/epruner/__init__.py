"""EPruner: adaptive exemplar filters by affinity propagation (Lin et al., TNNLS 2021)."""

from secateurs.methods.epruner.method import EPruner

__all__ = ["EPruner"]
