"""Messages speak of Python's settings; on the command line the same things have other names."""

from __future__ import annotations

import re

_OPTIONS = (
    *("macs", "params", "align", "scope", "ranking", "seed", "device", "track", "model", "weights", "num_classes"),
    *("normalize", "batch_size", "image_size", "lr", "schedule", "weight_decay", "label_smoothing", "precision"),
    *("temperature",),
)
_VALUE = r"'(?P<quoted>[^']*)'|(?P<plain>[^\s,;:()]*[^\s,;:().])"
_SETTING = re.compile(rf"(?<![-\w.])(?<!--set )(?P<name>{'|'.join(_OPTIONS)})=(?:{_VALUE})")
_PHRASES = (
    (r"^(?:Recover|Recipe|Distil|Mimic): ", ""),
    (r" \((?:lr|weight_decay): ", " ("),  # what a setting is, after its name
    (r"\b(?:budget=)?sc\.Budget\((\w+=[\d.]+)\)", r"\1"),
    (r"\bpass the num_classes\b", "pass with --num-classes the number"),
    (r"\ballow_inexact=True", "--allow-inexact"),
    (r"\boverwrite=True", "--force"),
    (r"\bresume=True", "--resume"),
    (r"\bskip_unreadable=True", "--skip-unreadable"),
    (r"\btrust_code=True", "--trust-code"),
    (r"Pass the network yourself \(model=…\)", "Name the network yourself (evaluate … --model)"),
    (r"[Ii]nput should be", "must be"),
    (r"Extra inputs are not permitted", "there is no such setting"),
)


def spoken(message: str) -> str:
    """`scope='all' may allow less` → `--scope all may allow less`."""
    for pattern, words in _PHRASES:
        message = re.sub(pattern, words, message)
    return _SETTING.sub(_option, message)


def _option(found: re.Match[str]) -> str:
    value = found["plain"] if found["quoted"] is None else found["quoted"]
    return f"--{found['name'].replace('_', '-')} {value}"
