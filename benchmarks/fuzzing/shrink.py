"""The least network that still has a fault, and a short program that shows it."""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from fuzzing import frames, parts
from fuzzing.frames import FRAMES
from fuzzing.judge import Verdict, judge
from fuzzing.kinds import KINDS
from fuzzing.networks import SIZE, Spec

SECONDS = 10.0  # of CPU time, for one fault
HEADER = {
    "math": "import math",
    "Iterable": "from collections.abc import Iterable",
    "dataclass": "from dataclasses import dataclass",
    "SimpleNamespace": "from types import SimpleNamespace",
    "Any": "from typing import Any",
    "checkpoint": "from torch.utils.checkpoint import checkpoint",
    "F": "import torch.nn.functional as F",
    "Tensor": "from torch import Tensor",
    "parametrizations": "from torch.nn.utils import parametrizations",
    "parametrize": "from torch.nn.utils import parametrize",
    "prune": "from torch.nn.utils import prune",
}


def shrunk(spec: Spec, fault: str, seconds: float = SECONDS) -> tuple[Spec, Verdict | None]:
    """A smaller network with the same fault, and the verdict on it; None if nothing smaller has it."""
    until, least = time.process_time() + seconds, None
    again = True
    while again and time.process_time() < until:
        again = False
        for smaller in _smaller(spec):
            found = _judged(smaller)
            if found is not None and fault in found.kinds:
                spec, least, again = smaller, found, True
                break
            if time.process_time() > until:
                break
    return spec, least


def _judged(spec: Spec) -> Verdict | None:
    try:
        spec.build()
    except Exception:  # not every block works after every other
        return None
    return judge(spec)


def _smaller(spec: Spec) -> Iterator[Spec]:
    """Networks that are simpler in one way, the simplest first."""
    blocks = spec.blocks
    if len(blocks) > 1:
        if spec.frame != "Chain":
            yield replace(spec, blocks=())
        for only in {str(b): b for b in blocks}.values():
            yield replace(spec, frame="Chain", blocks=(only,))
        for i in range(len(blocks)):
            yield replace(spec, blocks=(*blocks[:i], *blocks[i + 1 :]))
    elif blocks and spec.frame != "Chain":
        yield replace(spec, blocks=())
    if spec.frame != "Chain":
        yield replace(spec, frame="Chain")
    for i, (kind, options) in enumerate(blocks):
        for name in KINDS[kind].around:  # what is inside, without what is around
            yield replace(spec, blocks=(*blocks[:i], tuple(options[name]), *blocks[i + 1 :]))
        if options.get("o", 3) > 4:
            yield replace(spec, blocks=(*blocks[:i], (kind, {**options, "o": 4}), *blocks[i + 1 :]))
    if spec.dim == 3 and all(2 in KINDS[kind].dims for kind, _ in blocks):
        yield replace(spec, dim=2)


def culprit(spec: Spec) -> str:
    """What a least network consists of, for the table."""
    blocks = [
        f"{kind}({', '.join(inner)})" if (inner := named([(kind, options)])[1:]) else kind
        for kind, options in spec.blocks
    ]
    return " + ".join([*([spec.frame] if spec.frame != "Chain" or not blocks else []), *blocks])


def named(blocks: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """The kinds of these blocks and of those inside of them."""
    found = []
    for kind, options in blocks:
        found += [kind, *named(options[name] for name in KINDS[kind].around)]
    return found


def program(spec: Spec, fault: str, seen: str, kept: dict[str, list[int]]) -> str:
    """A program of its own that shows the fault."""
    used: dict[str, str] = {}
    for kind in named(spec.blocks):
        _collect(KINDS[kind].type, used)
    _collect(FRAMES[spec.frame], used)
    made = ", ".join(spec.expressions())
    body = "\n\n\n".join(used.values())
    imports = [line for name, line in HEADER.items() if re.search(rf"\b{name}\b", body)]
    tail = _TAILS.get(fault, _verify)(kept)
    return f"""# {fault}: {seen}
from __future__ import annotations
{chr(10).join(imports)}
import torch
from torch import nn

import secateurs as sc
from secateurs.testing.networks import randomize


{body}


torch.manual_seed({spec.seed})
model = randomize({spec.frame}([{made}], {spec.dim}, {SIZE[spec.dim]}), {spec.seed}).eval()
x = model.inputs()
{tail}
"""


def _collect(thing: Any, used: dict[str, str]) -> None:
    """The source of a class or function, after that of what it uses of ours."""
    name = thing.__name__
    if name in used:
        return
    source = inspect.getsource(thing)
    source = re.sub(r"^@block\((?:[^()]|\([^()]*\))*\)\n", "", source)
    if thing is parts.Block:
        source = source[: source.index("    def watched")].rstrip()
    source = re.sub(r'\n?    """(?:.|\n)*?"""\n', "\n", source, count=1) if isinstance(thing, type) else source
    known = {**vars(parts), **vars(frames), **vars(sys.modules[thing.__module__])}
    used[name] = ""  # its place, in case of a circle
    for word in dict.fromkeys(re.findall(r"\b[A-Za-z_]\w*\b", source)):
        other = known.get(word)
        if getattr(other, "__module__", "").startswith("fuzzing.") and word == getattr(other, "__name__", ""):
            _collect(other, used)
        elif word.isupper() and word in known and word not in ("F", "ALL", "FRAMES"):
            used.setdefault(word, f"{word} = {other!r}")
    del used[name]
    used[name] = re.sub(r"\n{3,}", "\n\n", source.strip())


def _traced(kept: dict[str, list[int]]) -> str:
    return f"graph = sc.trace(model, x)\nplan = graph.plan({kept})\nsmall = sc.apply(model, plan)\n"


def _verify(kept: dict[str, list[int]]) -> str:
    return _traced(kept) + "print(sc.verify(model, plan, x))"


def _train(kept: dict[str, list[int]]) -> str:
    return _traced(kept) + "small.train()(*x) if isinstance(x, tuple) else small.train()(x)"


def _cost(kept: dict[str, list[int]]) -> str:
    widths = {name: len(k) for name, k in kept.items()}
    return _traced(kept) + f"print(graph.cost({widths}), sc.count(small, x))"


def _frozen(kept: dict[str, list[int]]) -> str:
    return "print({g.name: str(g.reason) for g in sc.trace(model, x).groups})"


def _touched(kept: dict[str, list[int]]) -> str:
    return "before = dict(model.named_buffers())\nsc.count(model, x)\nsc.trace(model, x)"


def _attributes(kept: dict[str, list[int]]) -> str:
    return _traced(kept) + "print(small, {n: tuple(p.shape) for n, p in small.named_parameters()})"


_TAILS: dict[str, Callable[[dict[str, list[int]]], str]] = {
    "train": _train, "cost": _cost, "budget": _cost, "frozen": _frozen, "unstable": _frozen, "touched": _touched,
    "attributes": _attributes,
}  # fmt: skip
