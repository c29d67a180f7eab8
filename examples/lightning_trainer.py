"""Prune while training in Lightning: the callback adds NPN's penalty, ends the training and cuts the network.

pip install 'secateurs[lightning]'; python examples/lightning_trainer.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import secateurs as sc
from secateurs.integrations.lightning import PruningCallback  # first: it imports a torchvision that does not load, too

try:
    import lightning.pytorch as L
except ImportError:
    import pytorch_lightning as L  # type: ignore[no-redef]


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = sc.build("zoo:small_cnn", num_classes=4)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)


def main(count: int = 256, epochs: int = 4) -> tuple[nn.Module, sc.Plan]:
    """Train and prune to half of the MACs. Returns the small network and the plan."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(count, 3, 16, 16), torch.arange(count) % 4)
    module, callback = Classifier(), PruningCallback("npn", sc.Budget(macs=0.5), network="model")
    before = sc.count(module.model, torch.zeros(1, 3, 16, 16)).macs
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=32, shuffle=True))
    assert callback.plan is not None
    print(f"{sc.count(module.model, torch.zeros(1, 3, 16, 16)).macs / before:.0%} of the MACs")
    return module.model, callback.plan


if __name__ == "__main__":
    main()
