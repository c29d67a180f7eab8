"""The part of a network before it first consumes a group's channels, whose outputs do not depend on which are ablated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Held = dict[str, Tensor]  # outputs by module


class Prefix:
    """The modules that finish before any of `readers` is called, whose outputs can be replayed instead of running them.

    They are found in one run of the model as it is, gated and on a real batch, and not in the graph's flow, which is of the
    example inputs and does not say when a module returns. The replay is then verified: outputs captured with all channels
    present must lead to the same loss with some of them ablated as a full run, else nothing is replayed. Outputs that
    only replayed modules use are not stored.

    whole, ablated: the loss of the same few examples, with all of the group's channels and with some.
    """

    def __init__(
        self,
        model: nn.Module,
        readers: Iterable[nn.Module],
        whole: Callable[[], Tensor],
        ablated: Callable[[], Tensor],
    ) -> None:
        self._modules = dict(model.named_modules())
        self.names, self._changed = self._learn(set(readers), whole)
        self._unread: set[str] = set()
        self._store: Held | None = None  # being filled …
        self._held: Held | None = None  # … or being replayed
        self._install()
        self._try(whole, ablated)

    # -- use ----------------------------------------------------------------------------------------------------------

    def capture(self, run: Callable[[], Any]) -> tuple[Any, Held]:
        """The result of run(), and the outputs to replay."""
        store: Held = {}
        self._store = store
        try:
            return run(), store
        finally:
            self._store = None

    def replay(self, held: Held, run: Callable[[], Any]) -> Any:
        """The result of run() on the same inputs, with the prefix's outputs replayed."""
        self._held = held
        try:
            return run()
        finally:
            self._held = None

    def close(self) -> None:
        """Restore the modules' own forward."""
        for name in self.names:
            self._modules[name].__dict__.pop("forward", None)
        self.names = []

    # -- finding it ---------------------------------------------------------------------------------------------------

    def _learn(self, readers: set[nn.Module], run: Callable[[], Tensor]) -> tuple[list[str], set[str]]:
        """Outermost modules, called once, that return a tensor before a reader is called; and those of them whose
        output is changed in place later on."""
        calls: dict[str, int] = {}
        found: list[str] = []
        outputs: dict[str, tuple[Tensor, int]] = {}
        reached = False

        def watch(name: str, module: nn.Module) -> None:
            forward = module.forward

            def watched(*args: Any, **kwargs: Any) -> Any:
                nonlocal reached
                reached |= module in readers
                calls[name] = calls.get(name, 0) + 1
                start = len(found)
                out = forward(*args, **kwargs)
                if not reached and isinstance(out, Tensor):
                    del found[start:]  # they ran inside this module
                    found.append(name)
                    outputs[name] = out, out._version
                return out

            module.__dict__["forward"] = watched

        own = {name: module.__dict__.get("forward") for name, module in self._modules.items()}
        for name, module in self._modules.items():
            watch(name, module)
        try:
            run()
        finally:
            for name, module in self._modules.items():
                module.__dict__.pop("forward")
                if own[name] is not None:
                    module.__dict__["forward"] = own[name]
        if not reached:
            return [], set()
        names = [name for name in found if calls[name] == 1 and own[name] is None]
        return names, {name for name in names if outputs[name][0]._version != outputs[name][1]}

    def _install(self) -> None:
        for name in self.names:
            module = self._modules[name]
            module.__dict__["forward"] = self._forward(name, module.forward)

    def _forward(self, name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def prefixed(*args: Any, **kwargs: Any) -> Tensor:
            if self._held is not None:
                held = self._held[name]
                return held.clone() if name in self._changed else held
            out = forward(*args, **kwargs)
            if self._store is not None:
                self._store[name] = (
                    out.new_empty(0) if name in self._unread else out.clone() if name in self._changed else out
                )
            return out

        return prefixed

    def _try(self, whole: Callable[[], Tensor], ablated: Callable[[], Tensor]) -> None:
        """Verify that replay changes nothing, and keep as few outputs as that needs."""
        if not self.names:
            return
        _, held = self.capture(whole)
        expected = ablated()

        def same(held: Held) -> bool:
            try:
                return torch.equal(self.replay(held, ablated), expected)
            except Exception:  # whatever the network raises on a tensor that it does not expect
                return False

        if not same(held):
            self.close()
            return
        for name in self.names:
            less = {**held, name: held[name].new_empty(0)}
            if same(less):
                held = less
                self._unread.add(name)
