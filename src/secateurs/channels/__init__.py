"""Which channels of a network belong together: labels, rules, the tracer, and the graph they give."""

from secateurs.channels.cost import Cost, count
from secateurs.channels.graph import ChannelGraph, ChannelGroup, Slot
from secateurs.channels.reasons import Reason
from secateurs.channels.rules import register_rule
from secateurs.channels.tracing import trace

__all__ = ["ChannelGraph", "ChannelGroup", "Cost", "Reason", "Slot", "count", "register_rule", "trace"]
