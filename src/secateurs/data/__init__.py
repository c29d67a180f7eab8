"""Training and validation batches."""

from secateurs.data.bundle import Batch, Data
from secateurs.data.load import load
from secateurs.data.loader import Loader

__all__ = ["Batch", "Data", "Loader", "load"]
