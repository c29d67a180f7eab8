"""AOFP: approximated oracle filter pruning (Ding et al., ICML 2019)."""

from secateurs.methods.aofp.halves import Halves
from secateurs.methods.aofp.method import AOFP
from secateurs.methods.aofp.scoring import Damage
from secateurs.methods.aofp.search import BinaryFilterSearch, Move

__all__ = ["AOFP", "BinaryFilterSearch", "Damage", "Halves", "Move"]
