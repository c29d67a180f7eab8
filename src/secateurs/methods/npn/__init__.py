"""NPN: a network that prunes a network (Verma et al., WACV 2020)."""

from secateurs.methods.npn.method import NPN

__all__ = ["NPN"]
