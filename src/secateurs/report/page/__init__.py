"""The report of runs: one HTML page that needs no other file and no network."""

from secateurs.report.page.render import NAME, can_render, check, html, save, write
from secateurs.report.page.run import Run

__all__ = ["NAME", "Run", "can_render", "check", "html", "save", "write"]
