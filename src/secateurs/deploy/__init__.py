"""Where a network runs: measure its speed there, export it, and lay it out for speed."""

from secateurs.deploy.bench import Bench, Timed, bench
from secateurs.deploy.export import Exported, export
from secateurs.deploy.formats import FileModule
from secateurs.deploy.layout import deployed
from secateurs.deploy.target import Target

__all__ = ["Bench", "Exported", "FileModule", "Target", "Timed", "bench", "deployed", "export"]
