"""Channel dependencies of a network: labels, rules, the tracer, and the channel graph."""

from secateurs.graph.channels import ChannelGraph, ChannelGroup, Slot
from secateurs.graph.context import Context
from secateurs.graph.cost import Cost, count
from secateurs.graph.reasons import Reason
from secateurs.graph.rules import register_rule
from secateurs.graph.trace import trace

__all__ = ["ChannelGraph", "ChannelGroup", "Context", "Cost", "Reason", "Slot", "count", "register_rule", "trace"]
