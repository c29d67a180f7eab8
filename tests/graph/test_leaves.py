"""The tensors in a structure of any type."""

from __future__ import annotations

import collections
import dataclasses
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.graph.leaves import materialized, tensors, values
from tests.networks import conv, image


class Slotted:
    __slots__ = ("__hidden", "x")

    def __init__(self, x: Any, hidden: Any = None) -> None:
        self.x, self.__hidden = x, hidden


class Inherited(Slotted):
    """Slots, and attributes too."""

    def __init__(self, x: Any) -> None:
        super().__init__(x)
        self.more = {"y": x}


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclasses.dataclass
class Boxes:
    boxes: Any
    scores: Any = None


class Callable_:
    def __init__(self, x: Any) -> None:
        self.x = x

    def __call__(self) -> None: ...


WRAPPERS: dict[str, Any] = {
    "tuple": lambda x: (1, x),
    "mapping": lambda x: collections.OrderedDict(a=None, b=x),
    "user dict": lambda x: collections.UserDict(a=x),
    "deque": lambda x: collections.deque([x]),
    "set": lambda x: {x},
    "named tuple": lambda x: Pair("name", x),
    "dataclass": Boxes,
    "attributes": lambda x: SimpleNamespace(a="name", x=x),
    "slots": Slotted,
    "private slots": lambda x: Slotted(None, x),
    "generator": lambda x: (one for one in (x,)),
    "callable": Callable_,
    "distribution": lambda x: torch.distributions.Normal(x, x.exp()) if isinstance(x, Tensor) else [x],
}


@pytest.mark.parametrize("inner", WRAPPERS)
@pytest.mark.parametrize("outer", [name for name in WRAPPERS if name != "set"])
def test_any_structure_in_any_other(outer: str, inner: str) -> None:
    x = torch.rand(2)
    assert any(one is x for one in tensors(WRAPPERS[outer](WRAPPERS[inner](x))))


def test_in_order_and_once_for_each_place() -> None:
    a, b, c = torch.rand(3, 1).unbind()
    assert [id(x) for x in tensors(({"z": a, "a": [b]}, Pair(c, a)))] == [id(x) for x in (a, b, c, a)]
    assert len(tensors(Inherited(a))) == 2


def test_cycles_end_and_models_are_not_searched() -> None:
    x = torch.rand(1)
    cyclic: dict[str, Any] = {"x": x}
    cyclic["self"] = SimpleNamespace(up=[cyclic])
    assert [id(t) for t in tensors(cyclic)] == [id(x)]
    deep: Any = x
    for _ in range(5000):
        deep = [deep]
    assert [id(t) for t in tensors(deep)] == [id(x)]
    assert tensors([nn.Linear(2, 2), nn.Linear, torch, len, lambda: x, "text", 3]) == []


def test_arrays_and_sparse_tensors_are_values() -> None:
    found = values({"a": np.arange(3), "text": np.array(["x"]), "s": torch.eye(2).to_sparse()})
    assert [x.tolist() for x in found] == [[0, 1, 2], [[1, 0], [0, 1]]]
    assert tensors(np.arange(3)) == []


def test_iterators_are_materialized() -> None:
    x = torch.rand(1)
    plain = {"a": [x, (x,)]}
    assert materialized(plain) is plain
    assert materialized({"a": [(x for _ in range(2))]}) == {"a": [(x, x)]}


@pytest.mark.parametrize("name", [n for n in WRAPPERS if n != "distribution"])
def test_returned_channels_stay_whole_wherever_they_are(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 8), conv(8, 6), conv(6, 4)

        def forward(self, x: Tensor) -> Any:
            y = self.b(self.a(x).relu())
            return SimpleNamespace(features=WRAPPERS[name](y), logits=self.c(y).mean((2, 3)))

    graph = sc.trace(Net().eval(), image())
    assert str(graph["b"].reason) == "reaches the model's output"
    assert graph["a"].prunable
    result = sc.prune(Net().eval(), image(), "l1", sc.Budget(macs=0.7))
    assert any(x.shape[1] == 6 for x in tensors(result.model(image())))
