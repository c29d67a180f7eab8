"""Deployment: measure the speed of a network in its runtime, export it, and optimize it for inference."""

from secateurs.deploy.bench import Bench, Timed, bench
from secateurs.deploy.export import Exported, export
from secateurs.deploy.formats import FileModule
from secateurs.deploy.layout import deployed
from secateurs.deploy.target import Target

__all__ = ["Bench", "Exported", "FileModule", "Target", "Timed", "bench", "deployed", "export"]
