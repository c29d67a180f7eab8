"""`secateurs inspect`: which channels a network has, which of them may be cut, and why the rest may not."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from secateurs.cli import options
from secateurs.cli.budget import target as targeted
from secateurs.cli.budget import without_target
from secateurs.cli.limits import LimitOptions
from secateurs.cli.options import Count, Flag, Many
from secateurs.cli.spelling import option
from secateurs.cli.task import TaskOptions, recorded
from secateurs.errors import ArtifactError, ConfigError, SecateursError, TraceError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from secateurs.artifact import Card, Signature
    from secateurs.graph import ChannelGraph, ChannelGroup, Cost
    from secateurs.methods.limits import Bound, Bounds
    from secateurs.plans import Plan


PICTURES = ("shapes.png", "shares.png", "norms.png")


def inspect(
    model: str,
    *,
    input: str | None = None,
    num_classes: Count | None = None,
    scope: Literal["internal", "all"] = "internal",
    task_options: TaskOptions | None = None,
    limit_options: LimitOptions | None = None,
    target: str | None = None,
    target_set: Many = (),
    allow_inexact: Flag = False,
    trust_code: Flag = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
    pictures: options.Folder | None = None,
    force: Flag = False,
) -> None:
    """Show a network's channel groups: what may be cut, and why the rest may not.

    A group is a set of channels that live on the same layers; `8 ×4` are eight, each of them four channels of a layer
    that only go together. Its share is that of the network's MACs that involve its channels; a MAC involves an input
    and an output channel, so shares add up to more than 100%. Groups on a shortcut are cut with `--scope all` only.
    With `--exclude`, `--only`, `--ratio` and others, it shows which groups they keep, and the lowest cost they leave. A
    ratio of a group on a shortcut needs `--scope all`, as when a network is pruned.

    ```
    $ secateurs inspect zoo:small_cnn
    group    size   MACs  made by         read by    may be cut, or why not
    ──────────────────────────────────────────────────────────────────────────
    stem.0     16  13.6%  stem.0          plain.0    yes
    plain.0    32  34.6%  plain.0         plain.3    yes
    plain.3    40  86.4%  plain.3, conv2  conv1, fc  with --scope all
    conv1      40  61.7%  conv1           conv2      yes
    fc         10   0.0%  fc              -          reaches the model's output

    zoo:small_cnn on 3x32x32: 2,986,384 MACs (5.97M FLOPs), 46,106 parameters
    128 of 138 channels may be cut, 88 of them without --scope all
    lowest with --scope internal: 77.0k MACs (2.6%), 1.69k parameters (3.7%)
    lowest with --scope all     : 9.23k MACs (0.3%), 93 parameters (0.2%)
    ```

    Parameters
    ----------
    model
        zoo:NAME, torchvision:NAME, timm:NAME or python:package.module:factory; or the folder of an artifact, of which
        the stripes are shown, too
    input
        shape of one input, such as 3,224,224; by default what the network was made for, and for an artifact what its card
        records
    num_classes
        outputs of the network
    scope
        the scope to which --ratio applies: internal or all
    target
        measure the network's layers on torch-cpu, torch-cuda, onnxruntime or openvino, and show what a budget of time can
        reach there
    target_set
        a setting of the target, key=value, such as batch=32 or threads=1; may be given several times
    allow_inexact
        count channels as prunable over which a layer or group norm computes its statistics
    trust_code
        import and run the code that an artifact's card names
    as_json
        print JSON instead of a table
    pictures
        draw an artifact's filter shapes, and where stripes stay and how large they are, into this folder
    force
        overwrite existing pictures
    """

    import secateurs as sc
    from secateurs.artifact import Signature
    from secateurs.graph.inputs import tensors
    from secateurs.plans.stripes import summary
    from secateurs.timing import clocked

    if target is None and target_set:
        raise without_target(target_set)
    plan, spec, card = _artifact(model)
    task = (task_options or TaskOptions()).chosen() or recorded(card, model)
    network = sc.build(model, **task.options(model, num_classes, None), trust_code=trust_code)
    if pictures is not None:
        if plan is None:
            raise ConfigError(f"--pictures draws an artifact's stripes, and {model} is not an artifact.")
        _draw(network, plan, pictures, force)
    elif force:
        raise ConfigError("--force replaces pictures: give --pictures with it.")
    signature = Signature() if card is None or card.signature is None else card.signature
    inputs: Any
    if input is None and signature.inputs:
        try:
            inputs = signature.examples()
        except ArtifactError as error:
            raise error.advised("--input gives the shape of one input.") from None
    else:
        inputs = task.blank(shape_of(input) if input else default_shape(spec, network, card))
    alone = all(len(x) == 1 for x in tensors(inputs) if x.ndim)  # recorded inputs may be a larger batch
    shapes = [list(x.shape[1:] if alone else x.shape) for x in tensors(inputs)]
    shape = " and ".join("x".join(map(str, each)) for each in shapes)
    try:
        graph = sc.trace(network, inputs, allow_inexact=allow_inexact)
    except TraceError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, SecateursError):
            raise
        reason = f"{type(cause).__name__}: {cause}".strip().splitlines()[0].rstrip(".")
        raise TraceError(
            f"{model} does not run on an input of {shape}: {reason}. --input gives another shape."
        ) from error
    layers = [] if plan is None else summary(plan)
    limits = (limit_options or LimitOptions()).limits()
    bounds = limits.on(graph, scope)
    if target is not None:
        budget = sc.Budget(latency=0.5, target=targeted(target, target_set))
        graph = clocked(network, graph, inputs, budget, "all", bounds, report=options.log)
    floors: dict[str, Cost] = {scope: lowest(graph, scope, bounds)}
    for other in {"internal", "all"} - {scope}:
        with suppress(ConfigError):  # these limits do not fit the other scope
            floors[other] = lowest(graph, other, limits.on(graph, other))
    if as_json:
        record = _record(model, shapes, graph, bounds, floors)
        if card is not None:
            record["signature"] = signature.model_dump(mode="json")
        print(json.dumps(record if plan is None else {**record, "stripes": layers}, indent=2))
    else:
        _show(model, shape, graph, bounds, floors)
        _show_stripes(layers)
        if card is not None:
            _show_signature(signature)


def _show_signature(signature: Signature) -> None:
    from secateurs.report import signature as described

    for line in described(signature):
        options.out().print(line, soft_wrap=True)


def _artifact(spec: str) -> tuple[Plan | None, str, Card | None]:
    """The last plan of an artifact, the spec of its original network, and its card; None for any other spec."""
    from secateurs import artifact
    from secateurs.models import is_artifact

    if not is_artifact(spec):
        return None, spec, None
    plan, card = artifact.read(spec)
    return plan, spec if card.source is None or card.source.spec is None else card.source.spec, card


def _draw(network: nn.Module, plan: Plan, folder: Path, force: bool) -> None:
    from secateurs.report.shapes import pictures

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--pictures {folder} is a file: give a folder.")
    if not force and (found := next((folder / n for n in PICTURES if os.path.lexists(folder / n)), None)):
        raise ConfigError(f"{found} already exists: --force replaces it; or pass another folder.")
    try:
        drawn = pictures(network, plan, folder)
    except OSError as error:
        raise ConfigError(f"--pictures {folder} cannot be written to: {error.strerror or error}.") from error
    for path in drawn:
        options.log(f"drew {path}")


def _show_stripes(layers: list[dict[str, Any]]) -> None:
    from secateurs.report import stripes, stripes_line

    if layers:
        console = options.out()
        console.print()
        console.print(stripes(layers))
        console.print()
        console.print(stripes_line(layers))


def shape_of(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ConfigError(f"--input {text}: write the shape of one input without its batch, such as 3,224,224.")
    return shape


def default_shape(spec: str, network: nn.Module, card: Card | None = None) -> tuple[int, ...]:
    """The input that a network was designed for, if its family defines one; of an artifact that does not record its inputs, the
    images that it was made with."""
    if card is not None and card.data is not None and card.data.image_size is not None:
        return (3, card.data.image_size, card.data.image_size)
    family, _, name = spec.partition(":")
    if family == "zoo":
        return (3, 32, 32)
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        return tuple(config["input_size"])
    return (3, 299, 299) if name == "inception_v3" else (3, 224, 224)


def lowest(graph: ChannelGraph, scope: str, bounds: Bounds | None = None) -> Cost:
    """The cost with as few channels as the bounds allow in every group that the scope allows to cut."""
    cut = [g for g in graph.groups if g.prunable and (scope == "all" or g.internal)]
    return graph.cost({g.name: bounds[g.name].least if bounds and g.name in bounds else g.least for g in cut})


def macs_share(graph: ChannelGraph, group: ChannelGroup) -> float:
    """The share of the network's MACs that involve this group's channels."""
    whole = graph.cost().macs
    widths = graph.sizes.copy()
    widths[graph.index(group.name)] = 0
    return (whole - graph.cost(widths).macs) / whole if whole else 0.0


def _size(group: ChannelGroup) -> str:
    return f"{group.size} ×{group.coupled}" if group.coupled > 1 else str(group.size)


def _verdict(group: ChannelGroup, bound: Bound | None) -> str:
    if group.reason is not None:
        return group.reason.message.text(option)
    limit = "" if bound is None or bound.message is None else bound.message.text(option)
    if limit and bound is not None and (bound.missed or bound.least == group.size):
        return limit
    needs = group.least_reason and f"keeps at least {group.least}: {group.least_reason}"
    return ", ".join(part for part in ("yes" if group.internal else "with --scope all", limit or needs) if part)


def _record(
    model: str, shapes: list[list[int]], graph: ChannelGraph, bounds: Bounds, floors: dict[str, Cost]
) -> dict[str, Any]:
    cost = graph.cost()
    return {
        "model": model,
        "input": shapes[0] if len(shapes) == 1 else shapes,
        "macs": cost.macs,
        "flops": 2 * cost.macs,
        "params": cost.params,
        "warnings": list(graph.warnings),
        "lowest": {scope: {"macs": c.macs, "params": c.params} for scope, c in sorted(floors.items(), reverse=True)},
        **_timed(graph, floors),
        "groups": [
            {
                "name": g.name,
                "size": g.size,
                "coupled": g.coupled,
                "producers": list(g.producers),
                "consumers": list(g.consumers),
                "macs_share": round(macs_share(graph, g), 6),
                "prunable": g.prunable,
                "internal": g.internal,
                "exact": g.exact,
                "reason": None if g.reason is None else str(g.reason),
                "least": g.least,
                "least_reason": None if g.least_reason is None else str(g.least_reason),
                **_limit(bounds.get(g.name)),
            }
            for g in graph.groups
        ],
    }


def _timed(graph: ChannelGraph, floors: dict[str, Cost]) -> dict[str, Any]:
    """What a latency model says, if there is one."""
    from secateurs.latency import LatencyModel

    if not isinstance(clock := graph.clock, LatencyModel):
        return {}
    found = {
        "target": clock.target.record(), "seconds": clock.fit.seconds,
        "lowest": {scope: cost.latency for scope, cost in sorted(floors.items(), reverse=True)},
        "overhead": clock.fit.overhead, "liked": clock.liked, "model_error": clock.fit.error, "cuts": len(clock.fit.errors),
    }  # fmt: skip
    return {"latency": found}


def _limit(bound: Bound | None) -> dict[str, Any]:
    """What the user's limits say about a group, if anything."""
    if bound is None or bound.message is None:
        return {}
    return {"limit": bound.message.text(option), "least": bound.least, "most": bound.most}


def _show(model: str, shape: str, graph: ChannelGraph, bounds: Bounds, floors: dict[str, Cost]) -> None:
    from secateurs.report import listing, share, short, table

    console, cost = options.out(), graph.cost()

    def rows(names: int) -> Table:
        """names: how many of a group's layers are shown; the producers are only shown if there is room for both."""
        layers = ("made by", "read by") if names > 1 else ("read by",)
        made = table("group", "size", "MACs", *layers, "may be cut, or why not")
        made.columns[0].no_wrap = names < 2
        for column in made.columns[3:]:
            column.justify, column.no_wrap = "left", False
        for g in graph.groups:
            makers = (listing(g.producers, names),) if names > 1 else ()
            figures = (g.name, _size(g), f"{macs_share(graph, g):.1%}")
            made.add_row(*figures, *makers, listing(g.consumers, names) or "-", _verdict(g, bounds.get(g.name)))
        return made

    full, unlimited = rows(2), console.options.update(max_width=10_000)
    need = console.measure(full, options=unlimited).maximum
    # Long reasons may as well be folded.
    need -= max([0, *(len(_verdict(g, bounds.get(g.name))) - 40 for g in graph.groups)])
    console.print(full if need <= console.width else rows(1))
    console.print()
    prunable = [g for g in graph.groups if g.prunable and (g.name not in bounds or bounds[g.name].least < g.size)]
    inside, every = (sum(g.size for g in prunable if g.internal or not only) for only in (True, False))
    total = sum(g.size for g in graph.groups)
    console.print(f"{model} on {shape}: {cost.macs:,} MACs ({short(2 * cost.macs)} FLOPs), {cost.params:,} parameters")
    console.print(f"{every:,} of {total:,} channels may be cut, {inside:,} of them without --scope all")
    for scope, floor in sorted(floors.items(), reverse=True):
        console.print(
            f"lowest with --scope {scope:8}: {short(floor.macs)} MACs ({share(floor.macs, cost.macs)}), "
            f"{short(floor.params)} parameters ({share(floor.params, cost.params)})"
        )
    for found in _timed(graph, floors).values():
        lows = ", ".join(
            f"about {low * 1000:.3g} ms ({share(low, found['seconds'])}) with --scope {scope}"
            for scope, low in found["lowest"].items()
        )
        console.print(f"time on {found['target']['runtime']}: {found['seconds'] * 1000:.3g} ms; lowest {lows}")
        console.print(
            f"{found['overhead']:.0%} of the time do not depend on widths; multiples of {found['liked']} are the fastest widths"
        )
    options.warn(console, graph.warnings)
