"""`secateurs evaluate`: the accuracy and the cost of a network."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from secateurs.cli import options
from secateurs.cli.options import DataOptions, Folder, ModelOptions
from secateurs.cli.task import TaskOptions, no_network, recorded
from secateurs.errors import ConfigError, DataError, SecateursError, TrainingError, shown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateurs import Data
    from secateurs.artifact import Card
    from secateurs.runs import DataSpec
    from secateurs.tasks import VisionTask
    from secateurs.tasks.purpose import Purpose


def evaluate(
    artifact: Folder | None = None,
    *,
    model: str | None = None,
    model_options: ModelOptions | None = None,
    task_options: TaskOptions | None = None,
    data_options: DataOptions | None = None,
    device: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> None:
    """Evaluate a saved artifact next to the figures on its card, or any network with its weights.

    An artifact is measured on the data that it was made with, unless `--data` names other data. It is measured in float32.
    The accuracy of a classifier that was pruned with a loss or metrics of your own is measured; they are not on the card.

    ```
    $ secateurs evaluate runs/digits
                   MACs  parameters  top-1 %  top-5 %   loss
    ────────────────────────────────────────────────────────
    measured now  1.48M       23.1k    98.89   100.00  0.047
    on the card   1.48M       23.1k    98.89   100.00  0.047
    the original  2.99M       46.1k    99.72   100.00  0.018

    runs/digits: 359 images in 0.2 s
    digits, not normalized
    input 1x3x32x32 float32
    10 classes: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more
    RGB images resized and cropped to 32x32, in [0, 1]
    ```

    Parameters
    ----------
    artifact
        the folder of a pruned network, or hf:USER/NAME on the hub
    model
        instead of an artifact: zoo:NAME, torchvision:NAME, timm:NAME or python:package.module:factory;
        with an artifact: how to build its network, if its card does not say
    device
        cpu, cuda, cuda:1 …; an accelerator if there is one
    as_json
        print JSON instead of a table
    """
    from secateurs.artifact import on_hub, read
    from secateurs.runs.cut import pick_device
    from secateurs.tasks.purpose import Purpose

    model_options, spec = model_options or ModelOptions(), (data_options or DataOptions()).spec()
    if artifact is None and model is None:
        raise ConfigError("Give the folder of an artifact, or --model and --weights.")
    if artifact is not None and model_options.weights is not None:
        raise ConfigError(f"{shown(artifact)} has its own weights: omit --weights.")
    if artifact is not None and model is None and model_options.num_classes is not None:
        raise ConfigError(f"{shown(artifact)} has a fixed number of classes: --num-classes requires --model.")
    if artifact is None and model_options.weights is None:
        raise ConfigError(f"Without --weights {model} is untrained: there is nothing to measure.")
    if artifact is not None and ":" in str(artifact) and not artifact.exists() and not on_hub(artifact):
        raise ConfigError(f"{shown(artifact)} is no folder: a model spec is given as --model, with --weights FILE.")
    where = pick_device(device)
    card: Card | None = None
    purpose = Purpose.of((task_options or TaskOptions()).chosen())
    asked = purpose.named
    if artifact is not None:
        card = read(artifact)[1]
        purpose = purpose if purpose.named else recorded_purpose(artifact, card)
        network = _load(artifact, card, model, model_options).to(where)  # reading data may take a while
        trust, classes = model_options.trust_code, model_options.num_classes
        spec, data = recorded_data(artifact, card, spec, where, trust, purpose.task, classes)
        if purpose.named or not card.functions:
            purpose.check_fits(network, data, shown(artifact), ("give the data that it was pruned for.",))
        else:
            _check_classifies(network, data, purpose, artifact, card)
    else:
        build = model_options.network(str(model)).open(purpose)
        spec = spec.complete(purpose.task)
        data = spec.load(0, where, purpose.task, model_options.num_classes)
        network = build(data, where, 0)
    if data.val is None:
        raise DataError(f"{spec.name} has no images to validate on, and so nothing to measure with.")
    found = {"data": spec.name, "normalize": spec.normalize, **_measure(network, data, purpose)}
    if card is not None and not card.comparable and not asked:
        found["loss"] = None
    if not options.first():  # of several processes each has measured the whole
        return
    if card is not None and card.functions and not asked:
        options.log(
            f"the network was measured with functions of its own ({', '.join(card.functions)}), which its card does not have: "
            f"measured here as the task {purpose.task.name} is"
        )
    if card is not None and (doubt := _other_classes(card, data)) is not None:
        options.log(f"warning: {doubt}")
    if as_json:
        figures = {} if card is None else card.model_dump(mode="json")
        card_figures = {name: figures.get(name) for name in ("before", "cut", "calibrated", "after")}
        print(json.dumps({"measured": found, "card": card_figures, "signature": figures.get("signature")}, indent=2))
    else:
        _show(str(model) if artifact is None else shown(artifact), found, card)


def recorded_purpose(artifact: Path, card: Card) -> Purpose:
    """What the network is for, as its card says: without functions of the user's own, which it does not have."""
    from secateurs.tasks.purpose import Purpose

    return Purpose(recorded(card, artifact), card.task is not None)


def _check_classifies(network: nn.Module, data: Data, purpose: Purpose, artifact: Path, card: Card) -> None:
    """Raise ConfigError for a network of functions of the user's own that does not return a logit for each class of the data:
    only they can measure it."""
    import torch

    from secateurs.graph.inputs import call
    from secateurs.graph.modes import evaluating
    from secateurs.training.losses import heads

    names = ", ".join(card.functions)
    own = f"{shown(artifact)} was measured with functions of its own ({names}), which its card does not have"
    hint = "Measure it in Python, or give --task to measure it as a task does."
    try:
        purpose.check_fits(network, data, "It", ("give the data that it was pruned for.",))
        with torch.no_grad(), evaluating(network):
            logits = heads(call(network, purpose.example(network, data)))[0]
    except (DataError, TrainingError) as error:
        raise ConfigError(own, ", and as a classifier it cannot be measured: ", error, hint=hint) from error
    classes = len(data.classes or ())
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise ConfigError(
            f"{own}, and its outputs {tuple(logits.shape)} are not logits of the {classes} classes of this data.",
            hint=hint,
        )


def recorded_data(
    artifact: Path,
    card: Card,
    given: DataSpec,
    where: torch.device,
    trust: bool,
    task: VisionTask | None = None,
    classes: int | None = None,
) -> tuple[DataSpec, Data]:
    """The data to evaluate on: as given, completed from the card. task: by default the card's. classes: their number, if it is
    given."""
    from secateurs.runs import sources

    task = task or recorded(card, artifact)
    on_card = sources.recorded(card)
    named: str = on_card.get("data") or ""
    if given.data is None and not named:
        raise ConfigError(
            f"The card of {shown(artifact)} does not say which data it is for: give --data, and --normalize."
        )
    try:
        if given.data is None:
            sources.check_fetched(named, trust)
        spec = given.over(on_card).complete(task)
        return spec, spec.load(0, where, task, classes)
    except SecateursError as error:
        if given.data is not None:
            raise
        hint = f"The card of {shown(artifact)} names this data; --data overrides it."
        raise error.advised(*error.hint, *([" "] if error.hint else []), hint) from error


def _load(artifact: Path, card: Card, spec: str | None, model: ModelOptions) -> nn.Module:
    import secateurs as sc

    if spec is None and (card.source is None or card.source.spec is None):
        raise no_network(artifact)
    if spec is None:
        return sc.load(artifact, trust_code=model.trust_code)
    return sc.load(artifact, sc.build(spec, num_classes=model.num_classes, trust_code=model.trust_code))


def _measure(network: nn.Module, data: Data, purpose: Purpose) -> dict[str, Any]:
    import secateurs as sc
    from secateurs.cutting import measured

    inputs = purpose.example(network, data)
    cost = sc.count(network, inputs)
    metrics = measured(network, data, purpose.objective(network, inputs))
    return {
        "macs": cost.macs,
        "params": cost.params,
        "top1": metrics.top1,
        "top5": metrics.top5,
        "loss": metrics.loss,
        "metrics": metrics.metrics,
        "examples": metrics.examples,
        "skipped": getattr(data.val, "skipped", 0),
        "seconds": round(metrics.seconds, 2),
    }


def _show(what: str, found: dict[str, Any], card: Card | None) -> None:
    import secateurs as sc
    from secateurs.report import columns, count, duration, short, signature, table

    now = sc.Figures(*(found[name] for name in ("macs", "params", "top1", "top5", "loss", "metrics")))
    networks = [("measured now", now)]
    if card is not None:
        first = f"the {card.changed_before} network" if card.changed_before else "the original"
        networks += [("on the card", card.after), (first, card.networks()[0][1])]
    measured = columns([figures for _, figures in networks])
    rows = table("", "MACs", "parameters", *measured)
    for name, figures in networks:
        rows.add_row(
            name, short(figures.macs), short(figures.params), *(measure(figures) for measure in measured.values())
        )
    console = options.out()
    console.print(rows)
    console.print()
    how = "not normalized" if found["normalize"] == "none" else f"normalized by {found['normalize']}"
    skipped = f", {found['skipped']:,} that can't be read left out" if found["skipped"] else ""
    console.print(f"{what}: {count(found['examples'], 'image')} in {duration(found['seconds'])}{skipped}")
    console.print(f"{shown(found['data'])}, {how}")
    if card is not None and card.signature is not None:
        for line in signature(card.signature):
            console.print(line, soft_wrap=True)


def _other_classes(card: Card, data: Data) -> str | None:
    """A sentence if the data's classes are not those that the network tells apart, in their order."""
    recorded = None if card.signature is None else card.signature.classes
    if recorded is None or data.classes is None or list(data.classes) == recorded:
        return None
    ours, other = next((a, b) for a, b in zip_longest(recorded, data.classes) if a != b)
    return (
        f"the classes of this data are not those on the card: {shown(str(other))} where the card has {shown(str(ours))}. "
        "Unless these are other names of the same classes, the accuracy means nothing."
    )
