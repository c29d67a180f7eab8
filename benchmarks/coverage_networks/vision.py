"""torchvision, timm, segmentation_models_pytorch and Ultralytics: networks by name."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from coverage_networks.network import Built, Network, attribute, images, of
from secateurs.zoo import vision

# The number of boxes, and with it the cost, is that of the network and not of the boxes' values: none is suppressed, whatever
# its score (which may round to 0), and none is moved out of the image, where it would be dropped: random weights give
# offsets in the hundreds, which are divided by these.
ALL_BOXES = {
    "rpn_score_thresh": 0.0, "rpn_nms_thresh": 1.0, "box_score_thresh": -1.0, "box_nms_thresh": 1.0,
    "bbox_reg_weights": (1e4, 1e4, 1e4, 1e4),
}  # fmt: skip
PROPOSAL_WEIGHTS = (1e3, 1e3, 1e3, 1e3)
FEW_BOXES = {"rpn_post_nms_top_n_test": 50, "min_size": 224, "max_size": 320, **ALL_BOXES}
ONE_STAGE = {"min_size": 224, "max_size": 320, "score_thresh": 0.0}
DETECTORS = {
    **dict.fromkeys(("fasterrcnn", "maskrcnn", "keypointrcnn"), FEW_BOXES),
    **dict.fromkeys(("retinanet", "fcos"), ONE_STAGE),
    "ssd": {"score_thresh": 0.0},
}
CLIPS = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}  # frames, size


def torchvision() -> list[Network]:
    """Every model of torchvision, smallest first, but the quantized ones, which have the networks of others."""
    models = vision.torchvision().models

    def plain(name: str) -> Built:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network = models.get_model(name, weights=None, **options)
        return network, images(299 if name == "inception_v3" else 224)

    def segmenter(name: str) -> Built:
        return models.get_model(name, weights=None, weights_backbone=None), images()

    def detector(name: str) -> Built:
        options = next(o for kind, o in DETECTORS.items() if name.startswith(kind))
        network = models.get_model(name, weights=None, weights_backbone=None, **options)
        if isinstance(network, modules["detection"].FasterRCNN):
            network.rpn.box_coder.weights = PROPOSAL_WEIGHTS
        return network, ([torch.rand(3, 224, 224)],)

    def clip(name: str) -> Built:
        frames, size = CLIPS.get(name, (8, 112))
        return models.get_model(name, weights=None), torch.randn(1, 3, frames, size, size)

    def flow(name: str) -> Built:
        return models.get_model(name, weights=None), (images(128), images(128), 3)

    kinds = {"": plain, "segmentation": segmenter, "detection": detector, "video": clip, "optical_flow": flow}
    modules = {kind: getattr(models, kind) if kind else models for kind in kinds}
    named = [(name, build) for kind, build in kinds.items() for name in models.list_models(modules[kind])]
    named.sort(key=lambda item: next(iter(models.get_model_weights(item[0]))).meta["num_params"])
    return [Network("torchvision", name, lambda name=name, build=build: build(name)) for name, build in named]


def timm() -> list[Network]:
    """The smallest network of every family of timm, smallest first; timm.txt names them."""
    library = vision.timm()

    def build(name: str) -> Built:
        network = library.create_model(name, pretrained=False)
        channels, *size = network.pretrained_cfg["input_size"]
        return network, torch.randn(1, channels, *size)

    names = [line for line in Path(__file__).with_name("timm.txt").read_text().splitlines() if not line.startswith("#")]
    return [Network("timm", name, lambda name=name: build(name)) for name in names]


SEGMENTERS = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet",
    "Segformer",
)  # fmt: skip
ENCODERS = (
    "mobilenet_v2", "timm-efficientnet-b0", "efficientnet-b0", "densenet121", "vgg11_bn", "dpn68", "inceptionv4", "xception",
    "mobileone_s0", "mit_b0", "resnext50_32x4d", "se_resnet50", "timm-resnest14d", "timm-regnetx_002", "timm-skresnet18",
    "tu-convnext_atto", "tu-hrnet_w18_small", "tu-edgenext_xx_small", "tu-ghostnet_050",
)  # fmt: skip


def smp() -> list[Network]:
    """Every decoder on ResNet-18, and Unet on an encoder of every kind."""
    vision.timm()
    library = importlib.import_module("segmentation_models_pytorch")

    def build(decoder: str, encoder: str) -> Built:
        return getattr(library, decoder)(encoder_name=encoder, encoder_weights=None, classes=5), images()

    pairs = [(decoder, "resnet18") for decoder in SEGMENTERS] + [("Unet", encoder) for encoder in ENCODERS]
    return of("smp", {f"{d}({e})": (lambda d=d, e=e: build(d, e)) for d, e in pairs})


YOLO = [
    "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-cls", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb",
    "yolov8n-ghost", "yolov8n-p2", "yolov8n-p6", "yolov8n-rtdetr", "yolov8n-world", "yolov8n-worldv2", "yolov9t",
    "yolov9s", "yolov9c", "yolov9c-seg", "yolov10n", "yolov10s", "yolo11n", "yolo11n-cls", "yolo11n-seg", "yolo11n-pose",
    "yolo11n-obb", "yolo12n", "yolo12n-cls", "yolo12n-seg", "yolo12n-pose", "yolo12n-obb", "yolo26n", "yolo26n-cls",
    "yolo26n-seg", "yolo26n-pose", "yolo26n-obb", "yolo26n-p2", "yolo26n-p6", "yolo26n-sem", "yolo26n-depth", "yolov5n-p6",
    "yolov3", "yolov9m", "yolov9e", "rtdetr-resnet50", "rtdetr-l", "rtdetr-x",
]  # fmt: skip


def ultralytics() -> list[Network]:
    """YOLO v3 to 26 and RT-DETR, from their YAML files."""
    vision.torchvision()
    importlib.import_module("ultralytics")

    def build(name: str) -> Built:
        kind = attribute(f"ultralytics:{'RTDETR' if 'rtdetr' in name else 'YOLO'}")
        return kind(f"{name}.yaml").model, images(256 if "p6" in name or "rtdetr" in name else 224)

    return [Network("ultralytics", name, lambda name=name: build(name)) for name in YOLO]
