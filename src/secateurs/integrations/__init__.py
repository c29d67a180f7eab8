"""Pruning in third-party trainers. Each module needs its package and is imported separately:

from secateurs.integrations.lightning import PruningCallback       # pip install 'secateurs[lightning]'
from secateurs.integrations.transformers import PruningCallback    # pip install 'secateurs[transformers]'
from secateurs.integrations.ultralytics import align, trainer          # pip install 'secateurs[ultralytics]'
"""
