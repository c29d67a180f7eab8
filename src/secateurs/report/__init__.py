"""Output for people: formatted numbers, and the tables that the commands share."""

from secateurs.report import modelcard
from secateurs.report.figures import count, duration, error, formatted, heading, percent, share, short
from secateurs.report.tables import as_text, columns, listing, outcome, signature, stripes, stripes_line, table, timed

__all__ = [
    "as_text",
    "columns",
    "count",
    "duration",
    "error",
    "formatted",
    "heading",
    "listing",
    "modelcard",
    "outcome",
    "percent",
    "share",
    "short",
    "signature",
    "stripes",
    "stripes_line",
    "table",
    "timed",
]
