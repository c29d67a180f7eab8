"""Prune while training in transformers' Trainer: a model that returns its loss, NPN, and the cut at the end.

pip install 'secateurs[transformers]'; python examples/transformers_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateurs as sc
from secateurs.integrations.transformers import (
    PruningCallback,
)  # first: it imports a torchvision that does not load, too

from transformers import Trainer, TrainingArguments  # isort: skip


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = sc.build("zoo:small_cnn", num_classes=4)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


def main(count: int = 256, epochs: int = 4) -> tuple[nn.Module, sc.Plan]:
    """Train and prune to half of the MACs. Returns the small network and the plan."""
    torch.manual_seed(0)
    images = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 4} for i in range(count)]
    network, callback = Classifier(), PruningCallback("npn", sc.Budget(macs=0.5), network="model")
    before = sc.count(network.model, torch.zeros(1, 3, 16, 16)).macs
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=3e-3, use_cpu=True,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        callback.join(Trainer(network, arguments, train_dataset=images)).train()
    assert callback.plan is not None
    print(f"{sc.count(network.model, torch.zeros(1, 3, 16, 16)).macs / before:.0%} of the MACs")
    return network.model, callback.plan


if __name__ == "__main__":
    main()
