"""Output for people: formatted numbers, and the tables that the commands share."""

from secateurs.report.figures import count, duration, error, percent, share, short
from secateurs.report.tables import columns, listing, outcome, stripes, stripes_line, table

__all__ = [
    "columns",
    "count",
    "duration",
    "error",
    "listing",
    "outcome",
    "percent",
    "share",
    "short",
    "stripes",
    "stripes_line",
    "table",
]
