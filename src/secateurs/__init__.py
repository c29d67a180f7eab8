"""Cut whole filters, channels and stripes out of trained CNNs, and prove that nothing else changed."""

__version__ = "0.1.0"
