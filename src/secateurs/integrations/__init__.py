"""Pruning inside other people's trainers. Each module needs its package, and is imported on its own:

from secateurs.integrations.lightning import PruningCallback       # pip install 'secateurs[lightning]'
from secateurs.integrations.transformers import PruningCallback    # pip install 'secateurs[transformers]'
"""
