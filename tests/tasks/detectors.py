"""A tiny detector of torchvision, and drawn shapes."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.zoo.vision import torchvision


def shapes(folder: Path, train: int = 8, val: int = 4) -> Path:
    """A drawn set of images of about 50 pixels in a folder."""
    path = Path(__file__).parents[2] / "benchmarks" / "shapes.py"
    runpy.run_path(str(path), run_name="imported")["make"](folder, train, val, scale=0.5)
    return folder


def faster_rcnn(num_classes: int = 4, **options: Any) -> nn.Module:
    """Faster R-CNN on four convolutions, of 30,000 parameters."""
    torchvision()
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, out, stride in ((3, 8, 2), (8, 16, 2), (16, 16, 1), (16, 16, 1)):
        layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    backbone: Any = nn.Sequential(*layers)
    backbone.out_channels = 16
    return FasterRCNN(
        backbone, min_size=48, max_size=64, rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2), box_head=TwoMLPHead(16 * 9, 32),
        box_predictor=FastRCNNPredictor(32, num_classes), rpn_pre_nms_top_n_train=32, rpn_post_nms_top_n_train=16,
        rpn_pre_nms_top_n_test=32, rpn_post_nms_top_n_test=16, box_batch_size_per_image=16, **options,
    )  # fmt: skip
