"""Training and validation batches."""

from secateurs.data.bundle import Batch, Data
from secateurs.data.load import load
from secateurs.data.loader import Loader
from secateurs.data.preprocess import Preprocess

__all__ = ["Batch", "Data", "Loader", "Preprocess", "load"]
