"""Train a pruned YOLO or RT-DETR in Ultralytics' own trainer."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from secateurs.errors import ConfigError, SpecError
from secateurs.zoo.vision import torchvision

try:
    torchvision()  # Ultralytics imports it; this also works if its operators do not load
    from ultralytics.engine.model import Model
    from ultralytics.engine.trainer import BaseTrainer
except (ImportError, SpecError) as error:
    raise ConfigError("This trainer needs Ultralytics. Run: pip install 'secateurs[ultralytics]'") from error


def align(network: nn.Module) -> nn.Module:
    """Update the channel counts that Ultralytics' blocks store, in place, and return the network.

    C2f and similar blocks halve their channels with `chunk` in training and inference, but with `self.c` in exports
    (`forward_split`), which a trace does not run. A cut rewrites `c` only if everything of that width in the block changes to
    the same new width. Call `align` on networks from `sc.prune` and `sc.load`. `trainer` calls it for you.
    """
    block: Any
    for block in network.modules():
        if hasattr(block, "forward_split") and isinstance(getattr(block, "c", None), int):
            block.c = block.cv1.conv.out_channels // 2
    return network


def trainer(yolo: Model) -> type[BaseTrainer]:
    """Return the trainer class of this model's task, which trains the network that the model holds now:

        yolo.model = align(sc.prune(yolo.model, inputs, "l1", sc.Budget(macs=0.5)).model)
        yolo.train(trainer=trainer(yolo), data="shapes.yaml", epochs=10)

    Ultralytics' trainers build a network from its YAML file and copy the weights that fit. A pruned network would come back
    unpruned and mostly untrained. This trainer starts from a copy of `yolo.model` instead. Everything else is Ultralytics'
    own: losses, augmentation, averaged weights, validation, `best.pt`. With `resume=True`, it continues with the network in
    the checkpoint.

    yolo: a `YOLO` or `RTDETR` whose `model` is a network, pruned or not.

    Raises ConfigError for a model that is not a network. Training raises ConfigError if the data's number of classes or image
    channels differs from the network's, and for `pretrained=…`, which asks for other weights.
    """
    if not isinstance(yolo, Model) or not isinstance(yolo.model, nn.Module):
        found = yolo.model if isinstance(yolo, Model) else yolo
        raise ConfigError(
            f"{found!r} is not a network of Ultralytics: pass a YOLO(…) or RTDETR(…) that holds a network."
        )
    network, base = align(yolo.model), yolo._smart_load("trainer")

    class Trainer(base):  # type: ignore[misc, valid-type]
        __doc__ = base.__doc__

        def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
            if self.resume and weights is not None:  # the checkpoint's network
                return _trainable(weights)
            if self.args.pretrained not in (True, None):
                raise ConfigError(
                    f"pretrained={self.args.pretrained!r} asks for other weights than the network has: leave it out."
                )
            _check(network, self.data)
            return _trainable(deepcopy(network))

    Trainer.__name__ = Trainer.__qualname__ = f"Pruned{base.__name__}"
    return Trainer


def _trainable(network: nn.Module) -> nn.Module:
    """Return a network as Ultralytics builds it: in float32, all parameters trainable. Its trainers choose what to freeze."""
    network.__dict__.pop("criterion", None)  # left by an earlier training, with its settings
    network._modules.pop("criterion", None)
    return network.float().requires_grad_()


def _check(network: nn.Module, data: dict[str, Any]) -> None:
    head = next((m for m in reversed(list(network.modules())) if isinstance(getattr(m, "nc", None), int)), None)
    classes = None if head is None else head.nc
    if classes is not None and classes != data["nc"]:
        raise ConfigError(
            f"The network has {classes} classes, and the data has {data['nc']}. Train the whole network on this data "
            "first, then prune it."
        )
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = data.get("channels", 3)
    if first is not None and first.in_channels != channels:
        raise ConfigError(f"The network reads images of {first.in_channels} channels, and the data has {channels}.")
