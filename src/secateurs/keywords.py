"""Constructors whose wrong arguments are errors of ours, with the names that there are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from secateurs.errors import SecateursError, nearest
from secateurs.foreign import suggestion

C = TypeVar("C", bound=type)


def explained(error: type[SecateursError], advice: Mapping[str, str] | None = None) -> Callable[[C], C]:
    """A class decorator: an argument of the constructor that does not exist, or that is missing, is this error.

    advice: what to say about names that people try, in place of the names that there are.
    """

    def decorate(cls: C) -> C:
        init = cls.__init__  # type: ignore[misc]
        signature = inspect.signature(init)

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **given: Any) -> None:
            try:
                signature.bind(self, *args, **given)
            except TypeError as wrong:
                raise error(*_said(cls.__name__, signature, given, advice or {}, wrong)) from None
            init(self, *args, **given)

        cls.__init__ = checked  # type: ignore[misc]
        return cls

    return decorate


def _said(
    what: str, signature: inspect.Signature, given: Mapping[str, Any], advice: Mapping[str, str], wrong: TypeError
) -> tuple[str, ...]:
    known = [name for name in signature.parameters if name != "self"]
    for name in given:
        if name not in known:
            said = advice.get(name) or suggestion(name, known=known) or nearest(name, known)
            return (f"{what} has no {name}. {said}",)
    message = str(wrong)
    return (f"{what}: {message}. Its arguments are: {', '.join(known)}.",)
