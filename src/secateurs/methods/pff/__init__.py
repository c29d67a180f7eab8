"""PFF: pruning filters in filters, stripe by stripe (Meng et al., NeurIPS 2020)."""

from secateurs.methods.pff.method import PFF

__all__ = ["PFF"]
