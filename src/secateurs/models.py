"""Models from specs, and pruned networks from artifacts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from secateurs import artifact
from secateurs.artifact.provenance import begun, rebuilt, remember, remember_cut
from secateurs.artifact.state import check_tied
from secateurs.errors import ArtifactError, PlanError, SpecError
from secateurs.files import shown
from secateurs.graph.inputs import check_model
from secateurs.zoo import FAMILIES
from secateurs.zoo import build as build_from_zoo
from secateurs.zoo.weights import load_into


def build(
    spec: str | os.PathLike[str],
    weights: str | Path | None = None,
    num_classes: int | None = None,
    *,
    trust_code: bool = False,
    **options: Any,
) -> nn.Module:
    if isinstance(spec, os.PathLike):
        spec = os.fspath(spec)
    if not isinstance(spec, str):
        raise SpecError(f"{spec!r} is not a valid model spec: write FAMILY:NAME, such as zoo:resnet56.")
    if is_artifact(spec):
        if options:
            raise SpecError(
                f"{spec} is an artifact, which records how its network is built: {min(options)}=… cannot be set."
            )
        model = load(spec, trust_code=trust_code).train()
        if weights is not None:
            load_into(model, weights, spec)
        return model
    model = build_from_zoo(spec, weights, num_classes, **options)
    remember(model, {"spec": spec, "num_classes": num_classes, **options})
    return model


build.__doc__ = f"""{build_from_zoo.__doc__}
    The folder of an artifact is also a valid spec and builds its pruned network, for example to prune it further; so is
    `hf:USER/NAME`, see `load`.
    `trust_code` is then as for `load`; a spec that you pass yourself is always trusted.
    """


def is_artifact(spec: str) -> bool:
    """Whether this model spec is a folder, or a repository on the hub, which is then an artifact's."""
    return artifact.on_hub(spec) or (spec.partition(":")[0] not in FAMILIES and os.path.isdir(spec))


def card(folder: str | Path) -> artifact.Card:
    """The card of a saved artifact, in a folder or on the hub.

    It has `signature` (inputs, class names, preprocessing), `before`, `cut`, `after`, `method`, `history` and others: see
    docs/card-schema.md. Raises ArtifactError for an artifact that is incomplete or damaged.
    """
    return artifact.read(folder)[1]


def load(folder: str | Path, model: nn.Module | None = None, *, trust_code: bool = False) -> nn.Module:
    """The pruned network of a saved artifact, in eval mode.

    folder: where it was saved; or `hf:USER/NAME`, or `hf:USER/NAME@REVISION`: a repository on the Hugging Face Hub that such a
        folder was uploaded to (extra `hub`). Only the files of an artifact are fetched, into the cache of huggingface_hub.
    model: a fresh, unpruned model to cut; required if the original was not made by `build`. It is not modified. The
        artifact of a network that was pruned several times holds all of the cuts; a model that some of them have been applied
        to will do as well. Parameters that were one tensor in the saved network must be one in this model.
    trust_code: also build a network whose spec imports a module (`python:…`) or whose
        options may load or download files. Without it, no code that the artifact names is imported or run.

    Raises ArtifactError for an artifact that is incomplete, damaged, not to be fetched, or requires `trust_code`; PlanError
    for a plan that does not fit the model.
    """
    if model is not None:
        check_model(model)
    plan, card = artifact.read(folder)
    if model is not None:
        check_tied(model, card.state, artifact.place(folder, artifact.CARD))
        try:
            fresh = begun(card.source, model, plan)
        except PlanError as error:
            path = shown(artifact.place(folder, artifact.PLAN))
            raise PlanError(f"{path} does not fit this model: {shown(str(error))}") from error
    elif card.source is None or card.source.spec is None:
        raise ArtifactError(
            f"{shown(folder)} does not record how to build its network.",
            hint=f"In Python pass a fresh one, secateurs.load({shown(folder)!r}, model=…); the command line takes artifacts of "
            "networks that were built from a spec, such as python:package.module:factory.",
        )
    else:
        try:
            fresh = rebuilt(card.source, trust_code)
        except ArtifactError as error:
            raise error.within(f"{shown(artifact.place(folder, artifact.CARD))}: ") from error.__cause__
    small = artifact.restored(folder, plan, card, fresh)
    remember_cut(small, None if card.source is None else card.source.record(), plan)
    return small
