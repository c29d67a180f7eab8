"""torchvision, timm, segmentation_models_pytorch and Ultralytics: networks by name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

import torch
from torch import nn

from coverage_networks.network import Built, Network, attribute, images, of
from secateurs.zoo import vision

FEW_BOXES = {"rpn_post_nms_top_n_test": 50, "min_size": 224, "max_size": 320, "box_score_thresh": 0.0}
ONE_STAGE = {"min_size": 224, "max_size": 320, "score_thresh": 0.0}
DETECTORS = {
    **dict.fromkeys(("fasterrcnn", "maskrcnn", "keypointrcnn"), FEW_BOXES),
    **dict.fromkeys(("retinanet", "fcos"), ONE_STAGE),
    "ssd": {"score_thresh": 0.0},
}
CLIPS = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}  # frames, size


def torchvision() -> list[Network]:
    """Every model of torchvision but the quantized ones, which have the networks of others."""
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
        return network, ([torch.rand(3, 224, 224)],)

    def clip(name: str) -> Built:
        frames, size = CLIPS.get(name, (8, 112))
        return models.get_model(name, weights=None), torch.randn(1, 3, frames, size, size)

    def flow(name: str) -> Built:
        return models.get_model(name, weights=None), (images(128), images(128), 3)

    kinds = {"": plain, "segmentation": segmenter, "detection": detector, "video": clip, "optical_flow": flow}
    return [
        Network("torchvision", name, lambda name=name, build=build: build(name))
        for kind, build in kinds.items()
        for name in models.list_models(getattr(models, kind) if kind else models)
    ]


PLAIN_TRANSFORMERS = {
    "beit", "deepseek_vit", "deit", "eva", "gemma4_vit", "naflexvit", "qwen3_vit", "vision_transformer",
    "vision_transformer_relpos", "vision_transformer_sam",
}  # fmt: skip
SIZES = {
    "atto", "zepto", "femto", "pico", "nano", "tiny", "mini", "micro", "small", "medium", "base", "large", "huge", "giant",
    "gigantic", "enormous", "xtiny", "xxtiny", "xsmall", "xlarge", "xxlarge", "s", "m", "l", "xl", "xxl", "b", "h", "t", "ti",
    "g", "so", "plus", "little", "lite",
}  # fmt: skip


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


def timm() -> list[Network]:
    """The smallest network of every family, smallest first."""
    library = vision.timm()
    registry = importlib.import_module("timm.models._registry")._model_to_module
    smallest: dict[tuple[str, str], tuple[int, str]] = {}
    for name in library.list_models():
        if name.startswith("test_"):
            continue
        family = timm_family(name, registry[name])
        size = weight(lambda name=name: library.create_model(name, pretrained=False))
        smallest[family] = min(smallest.get(family, (size, name)), (size, name))

    def build(name: str) -> Built:
        network = library.create_model(name, pretrained=False)
        channels, *size = network.pretrained_cfg["input_size"]
        return network, torch.randn(1, channels, *size)

    return [Network("timm", name, lambda name=name: build(name)) for _, name in sorted(smallest.values())]


def weight(build: Callable[[], nn.Module]) -> int:
    """The number of parameters, without drawing them; large where it cannot be told."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build().parameters())
    except Exception:  # some read the values that they make
        return 1 << 40


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
