"""Networks by name: the papers' CIFAR networks, torchvision's, timm's, and custom factories."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from secateurs.errors import SecateursError, Setting, SpecError, a_or_an, nearest, one_of, shown
from secateurs.importing import import_object
from secateurs.zoo import cifar, cifar_resnet, vision
from secateurs.zoo.weights import WEIGHTS, load_into, load_state

__all__ = ["FAMILIES", "build", "find", "load_state", "names", "takes_classes"]

Factory = Callable[..., nn.Module]

_OWN: dict[str, Factory] = {
    "alexnet_bn": cifar.alexnet_bn,
    "googlenet": cifar.googlenet,
    "resnet20": cifar_resnet.resnet20,
    "resnet32": cifar_resnet.resnet32,
    "resnet44": cifar_resnet.resnet44,
    "resnet56": cifar_resnet.resnet56,
    "resnet110": cifar_resnet.resnet110,
    "small_cnn": cifar.small_cnn,
    "vgg16": cifar.vgg16,
}
FAMILIES = ("zoo", "torchvision", "timm", "python")


def build(spec: str, weights: str | Path | None = None, num_classes: int | None = None, **options: Any) -> nn.Module:
    """Build a network from a spec: `zoo:NAME`, `torchvision:NAME`, `timm:NAME` or `python:package.module:factory`.

    The network is in train mode, as after construction. Without `weights` it is randomly initialized; nothing is ever
    downloaded. `weights` is a `.safetensors` file or a state dict that loads without pickle, and must match exactly.
    `options` are passed to the network's constructor. A `python:` factory may also be in the working directory. It gets
    `num_classes` only if it has a parameter of that name.

    Raises SpecError for an invalid spec, and ArtifactError for weights that cannot be read or do not match.
    """
    make = find(spec)
    model = make(**options) if num_classes is None else make(**options, num_classes=num_classes)
    if weights is not None:
        load_into(model, weights, spec)
    return model


def find(spec: str) -> Factory:
    """Return the function that builds the network of a spec from its constructor's options. Raises SpecError for an unknown
    spec."""
    family, colon, name = spec.partition(":")
    if not colon or not name:
        if "/" in spec and not os.path.lexists(spec) and Path(spec).suffix not in (*WEIGHTS, ".py"):
            raise SpecError(
                f"There is no folder {shown(spec)}: a model is FAMILY:NAME, such as zoo:resnet56, or an artifact's folder."
            )
        raise SpecError(
            f"{shown(spec)!r} is not a valid model spec: write FAMILY:NAME, such as zoo:resnet56, or an artifact's folder.",
            hint=_suggest(spec),
        )
    if family not in FAMILIES:
        hint = nearest(family, FAMILIES)
        if name.isidentifier() and Path(*family.split(".")).with_suffix(".py").is_file():
            hint = f"Did you mean python:{spec}?"
        raise SpecError(f"{spec!r}: {family!r} is not a valid model family. {hint}")
    return _python(name) if family == "python" else _named(family, name)


def takes_classes(spec: str) -> bool:
    """Whether the factory of a spec is passed `num_classes`. Raises SpecError as `find` does."""
    find(spec)
    family, _, name = spec.partition(":")
    return family != "python" or _accepts(import_object(name, spec), "num_classes")


def names(family: str) -> list[str]:
    """Return the sorted names of the networks of a family: `zoo`, `torchvision` or `timm`. Raises SpecError for any other."""
    if family == "zoo":
        return sorted(_OWN)
    if family == "torchvision":
        return sorted(vision.torchvision().models.list_models())
    if family == "timm":
        return sorted(vision.timm().list_models())
    raise SpecError(f"No list of models for {family!r}. {nearest(family, ('zoo', 'torchvision', 'timm'))}")


def _suggest(name: str) -> tuple[object, ...]:
    """Suggest a spec for one without a family."""
    if name in _OWN:
        return (f"Did you mean zoo:{name}?",)
    path = Path(name)
    if path.suffix in WEIGHTS:
        return "It is a file of weights: name the network, and pass the file as ", Setting("weights", shown(name)), "."
    if path.suffix == ".py":
        module = ".".join(path.with_suffix("").parts)
        return (
            f"For a network of your own write python:{shown(module)}:FACTORY, a function or class that returns it.",
        )
    others = []
    for family in ("torchvision", "timm"):
        with contextlib.suppress(SpecError):  # not installed
            others += [f"{family}:{name}"] * (name in names(family))
    if others:
        return (f"Did you mean {one_of(others)}?",)
    return (nearest(name, [f"zoo:{own}" for own in _OWN]),)


def _named(family: str, name: str) -> Factory:
    known = names(family)
    # timm also accepts NAME.TAG, where the tag is a set of weights.
    if (name.partition(".")[0] if family == "timm" else name) not in known:
        raise SpecError(f"{family} has no model {name!r}. {nearest(name, known)}")
    if family == "zoo":
        return partial(_call, _OWN[name], f"zoo:{name}")
    if family == "timm":
        return partial(_call, vision.timm().create_model, f"timm:{name}", model_name=name, pretrained=False)
    models = vision.torchvision().models
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    defaults: dict[str, Any] = {"weights": None}
    if "weights_backbone" in parameters:
        defaults["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        defaults["init_weights"] = True  # the default, without the FutureWarning
    return partial(_call, models.get_model, f"torchvision:{name}", name=name, **defaults)


def _python(name: str) -> Factory:
    spec = f"python:{name}"
    factory = import_object(name, spec)
    if isinstance(factory, nn.Module) or not callable(factory):
        made = "a network already" if isinstance(factory, nn.Module) else f"{a_or_an(type(factory).__name__)}"
        raise SpecError(
            f"{spec!r}: {name.partition(':')[2]} is {made}; it must be a class or function that returns a network."
        )

    def make(**options: Any) -> nn.Module:
        if "num_classes" in options and not _accepts(factory, "num_classes"):
            options = {key: value for key, value in options.items() if key != "num_classes"}
        model = _call(factory, spec, **options)
        if not isinstance(model, nn.Module):
            raise SpecError(f"{spec!r} returned {a_or_an(type(model).__name__)}, not a torch.nn.Module.")
        return model

    return make


def _accepts(factory: Factory, name: str) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some builtins have no signature
        return False
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _call(factory: Factory, spec: str, /, **options: Any) -> nn.Module:
    try:
        return factory(**options)
    except SecateursError:
        raise
    except (TypeError, ValueError) as error:
        raise SpecError(f"{spec} could not be built with {options or 'no options'}: {error}") from error
