"""Run Python code before and after a network's forward pass, even if the network is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class EagerHook:
    """Forward hooks that are not compiled with the network: Python code before and after each pass, for example to set gates.
    If the network is compiled, `Captured` calls them. Copies of the network share the hook.

    forget: drops what `before` has kept of a pass that is not a training step.
    """

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[nn.Module, Any, Any], None],
        after: Callable[[], None] = lambda: None,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self.before, self.after, self.forget = before, after, forget
        self.compiled = False  # whether the pass is compiled; if so, `before` and `after` are called around it
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> EagerHook:
        return self

    def _enter(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.compiled:
            self.before(model, args, kwargs)

    def _leave(self, model: nn.Module, args: Any, out: Any) -> None:
        if not self.compiled:
            self.after()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def called(self, model: nn.Module, args: Any, kwargs: Any) -> Iterator[None]:
        """Call `before` and `after` around this context instead of around the model's passes in it."""
        self.compiled = True
        try:
            self.before(model, args, kwargs)
            yield
        finally:
            self.compiled = False
            self.after()


def eager_hooks(net: nn.Module) -> list[EagerHook]:
    found = [getattr(hook, "__self__", None) for hook in net._forward_pre_hooks.values()]
    return [hook for hook in found if isinstance(hook, EagerHook)]
