"""What people read: figures in few digits, and the tables that the commands share."""

from secateurs.report.figures import duration, error, percent, share, short
from secateurs.report.tables import listing, outcome, table

__all__ = ["duration", "error", "listing", "outcome", "percent", "share", "short", "table"]
