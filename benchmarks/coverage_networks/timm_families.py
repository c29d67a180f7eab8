"""Writes timm.txt: the smallest network of every family of timm.

python benchmarks/coverage_networks/timm_families.py
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from secateurs.zoo import vision

PLAIN_TRANSFORMERS = {
    "beit", "deepseek_vit", "deit", "eva", "gemma4_vit", "naflexvit", "qwen3_vit", "vision_transformer",
    "vision_transformer_relpos", "vision_transformer_sam",
}  # fmt: skip
SIZES = [
    "zepto", "atto", "femto", "pico", "nano", "xxtiny", "xtiny", "xxs", "xs", "tiny", "t", "ti", "xsmall", "mini", "micro", "s",
    "little", "lite", "small", "medium", "m", "b", "base", "so", "h", "l", "plus", "large", "xl", "xlarge", "xxl", "xxlarge",
    "g", "huge", "giant", "gigantic", "enormous",
]  # fmt: skip
CANDIDATES = 3  # of a family, smallest by their names, are built and counted


def timm_family(name: str, module: str) -> tuple[str, str]:
    """Its module, and its name without sizes; plain vision transformers are one family per module."""
    if module in PLAIN_TRANSFORMERS:
        return module, ""
    words = []
    for part in name.split("_"):
        stem = part if re.match(r"(cs3|halo2|res2|sam2)", part) else re.match(r"[a-z]*(?:(?<=v)\d)?", part)[0]  # type: ignore[index]
        stem = re.sub(r"^(res2ne[x]?t)\d+d?$", r"\1", stem)
        if stem and stem not in SIZES and (len(stem) > 2 or not words):
            words.append(stem)
    return module, "_".join(words)


def weight(build: Callable[[], nn.Module]) -> int:
    """The number of parameters, without drawing them; large where it cannot be told."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build().parameters())
    except Exception:  # some read the values that they make
        return 1 << 40


def by_name(name: str) -> tuple[int, list[int]]:
    """Sorts a family's networks roughly by size."""
    sizes = [SIZES.index(part) for part in name.split("_") if part in SIZES]
    return min(sizes, default=0), [int(n) for n in re.findall(r"\d+", name)]


def main() -> None:
    warnings.simplefilter("ignore")
    library = vision.timm()
    registry = importlib.import_module("timm.models._registry")._model_to_module
    families: dict[tuple[str, str], list[str]] = {}
    for name in library.list_models():
        if not name.startswith("test_"):
            families.setdefault(timm_family(name, registry[name]), []).append(name)
    smallest = [
        min(
            (weight(lambda n=n: library.create_model(n, pretrained=False)), n)
            for n in sorted(names, key=by_name)[:CANDIDATES]
        )
        for names in families.values()
    ]
    head = f"# timm {library.__version__}: the smallest network of each of {len(smallest)} families (timm_families.py)"
    Path(__file__).with_name("timm.txt").write_text("\n".join([head, *(name for _, name in sorted(smallest)), ""]))


if __name__ == "__main__":
    main()
