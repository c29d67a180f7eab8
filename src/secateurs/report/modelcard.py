"""Write an artifact's README.md: a model card that the Hugging Face Hub can read."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import yaml

from secateurs.artifact import Card, Figures
from secateurs.data.spec import on_hub
from secateurs.errors import printable
from secateurs.report.figures import error, share, short
from secateurs.report.tables import columns
from secateurs.report.tables import signature as signature_lines

TAGS = ("secateurs", "pruning", "structured-pruning", "pytorch")
PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
DIGITS = "digits"
PLACE = "USER/NAME"  # the repository, which only its owner knows
VERIFIED = (
    "The network was verified when it was cut: it computes what the original computes with the same channels masked, to a "
    "relative error of "
)


def text(card: Card, call: str | None = None, method: str = "", language: str = "python") -> str:
    """Return the text of the file. call: the code that repeats the pruning, in Python, or a command (language: sh). method: a
    description of the method, without the period. All text is escaped."""
    header = yaml.safe_dump(_header(card), sort_keys=False, allow_unicode=False, width=1000)
    made = "" if call is None else _fenced(call, language)
    return printable(f"---\n{header}---\n\n{_join(_body(card, made, method))}")


def _join(blocks: Iterator[str]) -> str:
    return "\n\n".join(blocks) + "\n"


# -- the header ----------------------------------------------------------------------------------------------------------


def _header(card: Card) -> dict[str, Any]:
    pipeline = _pipeline(card)
    spec = "" if card.source is None or card.source.spec is None else card.source.spec
    family, _, name = spec.partition(":")
    hub = _hub_data(card)
    tags = [*TAGS, *([family] if family in ("timm", "torchvision") else []), card.method.name]
    found: dict[str, Any] = {"library_name": "secateurs"}
    if pipeline is not None:
        found["pipeline_tag"] = pipeline
    found["tags"] = list(dict.fromkeys(tags))
    if family == "timm" and "." in name and card.source is not None and card.source.options.get("pretrained") is True:
        found["base_model"] = f"timm/{name}"  # its weights are from there; without a tag, they are unknown
    if hub is not None:
        found["datasets"] = [hub]
    measured = list(_metrics(_networks(card)[-1][1]))
    if measured:
        found["metrics"] = list(dict.fromkeys(metric["type"] for metric in measured))
    if measured and pipeline is not None:
        name, kind = (hub, hub) if hub is not None else (_data_name(card), _slug(_data_name(card)))
        result = {"task": {"type": pipeline}, "dataset": {"name": name, "type": kind}, "metrics": measured}
        found["model-index"] = [{"name": _title(card), "results": [result]}]
    return found


def _pipeline(card: Card) -> str | None:
    """Return the Hub's name of the task; None if it is not known."""
    inputs = [] if card.signature is None else card.signature.inputs
    if card.task is not None:
        return PIPELINES.get(card.task.name)
    image = len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].shape[1] in (1, 3)
    return PIPELINES["classification"] if card.after.top1 is not None and image else None


def _hub_data(card: Card) -> str | None:
    """Return the name of the data on the Hub, if it is from there."""
    spec = "" if card.data is None else str(card.data.data or "")
    return spec.removeprefix("hf:").partition("?")[0] if on_hub(spec) else None


def _data_spec(card: Card) -> str:
    """Return the spec without its options; empty for data without a spec."""
    return "" if card.data is None else str(card.data.data or "").partition("?")[0]


def _data_name(card: Card) -> str:
    """Return a name for the data, without its path on this machine."""
    spec = _data_spec(card)
    if spec == DIGITS:
        return "digits of scikit-learn"
    _, _, place = spec.partition(":")
    return PurePath(place).name or "validation data"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-").lower() or "data"


def _metrics(figures: Figures) -> Iterator[dict[str, Any]]:
    if figures.top1 is not None:
        yield {"type": "accuracy", "name": "top-1 accuracy, %", "value": round(figures.top1, 4)}
    if figures.top5 is not None:
        top5 = {"type": "accuracy", "name": "top-5 accuracy, %", "value": round(figures.top5, 4)}
        yield {**top5, "args": {"top_k": 5}}  # distinguishes it from the other accuracy
    for name, value in figures.metrics.items():
        if value is not None:
            yield {"type": _slug(name), "name": name, "value": round(value, 6)}


def _networks(card: Card) -> list[tuple[str, Figures]]:
    """Return all networks from the original on, without a top-5 accuracy that is 100% whatever the network computes."""
    networks, classes = card.networks(), _classes(card)
    always = classes <= 5 if classes is not None else all(figures.top5 in (None, 100) for _, figures in networks)
    return [(name, replace(figures, top5=None) if always else figures) for name, figures in networks]


def _classes(card: Card) -> int | None:
    """Return the number of classes; None if it is not on record."""
    if card.signature is not None and card.signature.classes is not None:
        return len(card.signature.classes)
    return None if card.source is None else card.source.num_classes


def _title(card: Card) -> str:
    return f"{_network(card)} pruned by {card.method.name}"


def _network(card: Card) -> str:
    spec = None if card.source is None else card.source.spec
    return "network" if spec is None else spec.rpartition(":")[2]


# -- the page ------------------------------------------------------------------------------------------------------------


def _body(card: Card, made: str, method: str) -> Iterator[str]:
    before, after = card.networks()[0][1], card.after
    spec = None if card.source is None else card.source.spec
    of, whose = ("A network", "the original's") if spec is None else (_code(spec), "its")
    if changed := card.changed_before:
        of, whose = f"{of}, first {changed},", f"the {changed} network's"
    yield f"# {_escaped(_title(card))}"
    yield (
        f"{of} with {share(after.macs, before.macs)} of {whose} MACs and {share(after.params, before.params)} of {whose} "
        "parameters. "
        f"Whole channels{' and kernel stripes' if card.stripes else ''} were cut by Secateurs with the method "
        f"{_code(card.method.name)}; what is left is an ordinary PyTorch module."
    )
    if method:
        yield f"The method {_code(card.method.name)}: {_escaped(method)}."
    yield _table(card)
    if card.data is not None and after.loss is not None:
        yield f"Measured on {_escaped(_hub_data(card) or _data_name(card))}."
    if card.error is not None:  # an inexact cut has a warning instead
        yield f"{VERIFIED}{error(card.error)}."
    yield from (f"Note: {_escaped(warning)}" for warning in card.warnings)
    yield "## How to load it"
    yield _fenced(_load(card), "python")
    if card.signature is not None and (lines := signature_lines(card.signature)):
        yield "How it is called, with the exact values in `secateurs.card`:"
        yield "\n".join(f"- {_escaped(line)}" for line in lines)
    if made:
        yield "## How it was made"
        yield made
        yield f"With {', '.join(f'{_escaped(name)} {_escaped(v)}' for name, v in card.versions.items()) or 'Secateurs'}."
    yield "## Files"
    yield (
        "`plan.json` says what was kept of each layer, `model.safetensors` holds the weights, and `card.json` the settings, "
        "the figures and the history of training. There is no pickle, and loading runs no code from this repository."
    )
    yield "## License"
    yield "That of the original network and its weights: add it to the header of this file as `license:`."


def _load(card: Card) -> str:
    spec = None if card.source is None else card.source.spec
    if spec is None:
        return (
            "import secateurs as sc\n\n"
            "# original: a fresh network, as it was before pruning. The path of this folder loads, too.\n"
            f'model = sc.load("hf:{PLACE}", model=original)'
        )
    lines, trust = ["import secateurs as sc", ""], ""
    if spec.startswith("python:"):
        module, _, name = spec.removeprefix("python:").partition(":")
        lines += [f"# Needs your copy of the module {module}, with {name}: trust_code=True imports it."]
        trust = ", trust_code=True"
    lines += [f'model = sc.load("hf:{PLACE}"{trust})  # or the path of this folder']
    if card.signature is not None and card.signature.preprocess is not None:
        lines += [
            f'preprocess = sc.card("hf:{PLACE}").signature.preprocess',
            'outputs = model(preprocess("image.jpg"))',
        ]
    return "\n".join(lines)


def _table(card: Card) -> str:
    networks = _networks(card)
    measured = columns([figures for _, figures in networks])
    measured = measured if any(f.loss is not None or f.top1 is not None or f.metrics for _, f in networks) else {}
    rows = [["", "MACs", "", "parameters", "", *map(_escaped, measured)]]
    before = networks[0][1]
    for name, figures in networks:
        rows.append([
            _escaped(name), short(figures.macs), share(figures.macs, before.macs), short(figures.params),
            share(figures.params, before.params), *(measure(figures) for measure in measured.values()),
        ])  # fmt: skip
    rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escaped(value: str) -> str:
    """Escape text, so that neither HTML nor Markdown treats any of it as markup."""
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", html.escape(value, quote=False))


def _code(value: str) -> str:
    """Format text as code. Text with backticks, which names do not have, is escaped instead: a backtick would end the code."""
    return f"`{value}`" if "`" not in value else _escaped(value)


def _fenced(code: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"
