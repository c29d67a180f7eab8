"""What other libraries and training loops call a setting, and what it is called here."""

from __future__ import annotations

from collections.abc import Collection

from secateurs.errors import Setting, Spelling, python

STAYS = (Setting("macs"), "the share of the MACs that stays, in place of what goes")
NAMES = (Setting("only"), "the layers that may be cut")
PHASES = (Setting("recover"), "the training after the cut, with its own length, learning rate and optimizer")
BATCHES = (Setting("data"), "the training batches, and those to validate on")
# Names of torch-pruning, torch.nn.utils.prune, NNI and training loops: what to pass, and what that is; or what else to do.
KEYWORDS: dict[str, tuple[Setting, str] | str] = {
    "pruning_ratio": STAYS, "ch_sparsity": STAYS, "sparsity": STAYS, "amount": STAYS, "prune_ratio": STAYS,
    "sparse_ratio": STAYS, "total_sparsity": STAYS,
    "pruning_ratio_dict": (Setting("ratios"), "for each layer the share of its channels that stays"),
    "ch_sparsity_dict": (Setting("ratios"), "for each layer the share of its channels that stays"),
    "max_pruning_ratio": (Setting("max_cut"), "the largest share of a layer's channels that goes"),
    "max_ch_sparsity": (Setting("max_cut"), "the largest share of a layer's channels that goes"),
    "importance": (Setting("method", "l2"), "or another method"),
    "pruning_method": (Setting("method", "l2"), "or another method"),
    "round_to": (Setting("align"), "widths are multiples of it"),
    "iterative_steps": (Setting("rounds"), "each of them cuts, calibrates and recovers"),
    "ignored_layers": (Setting("exclude"), "the layers that stay whole"),
    "root_module_types": NAMES, "op_types": NAMES, "op_names": NAMES,
    "global_pruning": (Setting("ranking", "global"), "a setting of the method"),
    "isomorphic": (Setting("ranking", "isomorphic"), "a setting of the method"),
    "unwrapped_parameters": "Leave it out: the trace finds parameters outside of layers.",
    "channel_groups": "Leave it out: the trace finds which channels belong together.",
    "epochs": PHASES, "steps": PHASES, "lr": PHASES, "learning_rate": PHASES, "optimizer": PHASES, "finetune_epochs": PHASES,
    "train_loader": BATCHES, "train_dataloader": BATCHES, "dataloader": BATCHES, "val_loader": BATCHES,
    "val_dataloader": BATCHES,
    "criterion": (Setting("loss"), "a function (outputs, targets) -> scalar"),
    "loss_fn": (Setting("loss"), "a function (outputs, targets) -> scalar"),
    "customized_pruners": "Leave it out: a rule for an operation of your own is registered by sc.register_rule.",
}  # fmt: skip


def suggestion(name: str, spelling: Spelling = python, known: Collection[str] | None = None) -> str | None:
    """What to write in place of a setting that has another name elsewhere, as a sentence; None for a name that is not known.

    known: the settings that there are, None for all of them: nothing else is suggested.
    """
    found = KEYWORDS.get(name.strip("-").replace("-", "_"))
    if found is None or isinstance(found, str):
        return found if known is None else None
    setting, what = found
    if known is not None and setting.name not in known:
        return None
    return f"Pass {spelling(setting)}: {what}."
