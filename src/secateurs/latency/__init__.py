"""How long a network takes at any widths, on the user's machine: tables of its layers, a model of them, and measurements."""

from secateurs.latency.build import modeled, tabulated
from secateurs.latency.fits import FitRecord
from secateurs.latency.model import Fit, LatencyModel
from secateurs.latency.stopwatch import Measured, Stopwatch, stopwatch
from secateurs.latency.stripes import curve

__all__ = ["Fit", "FitRecord", "LatencyModel", "Measured", "Stopwatch", "curve", "modeled", "stopwatch", "tabulated"]
