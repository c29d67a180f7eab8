"""Run several computations up to the same point, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class _Stopped(BaseException):
    """Raised inside a computation that is not continued."""


class Coroutine:
    """A function that can be suspended in the middle of whatever it calls: `pause(point)` returns when the caller continues.

    It runs in a thread of its own, but never at the same time as its caller. A network's forward cannot yield; this is how it
    is stopped at each layer while other images catch up, with the activations that it needs left where they are.
    """

    def __init__(self, function: Callable[[Coroutine], None]) -> None:
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._back: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()
        self.done = False

    def resume(self) -> Any:
        """Run to the next point, which is returned; None at the end. Raises what the function raises."""
        self._go.put(True)
        point, error = self._back.get()
        self.done = point is None
        if error is not None:
            raise error
        return point

    def pause(self, point: Any) -> None:
        """Suspend; called from within the function."""
        self._back.put((point, None))
        if not self._go.get():
            raise _Stopped

    def close(self) -> None:
        """Abandon the function where it is."""
        if not self.done:
            self._go.put(False)
        self._thread.join()

    def _run(self, function: Callable[[Coroutine], None]) -> None:
        error: BaseException | None = None
        try:
            if not self._go.get():
                return
            function(self)
        except _Stopped:
            return
        except BaseException as raised:
            error = raised
        self._back.put((None, error))
