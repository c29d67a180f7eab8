"""transformers, MONAI and diffusers: networks from settings, narrow ones where the defaults are large."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from coverage_networks.network import Built, Network, attribute, images, of, volume
from secateurs.zoo import vision

NARROW = {"hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1]}
# class: (settings, inputs)
TRANSFORMERS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "ResNetForImageClassification": ({}, images),
    "RegNetForImageClassification": ({"hidden_sizes": [32, 64, 160, 384], "depths": [1, 1, 4, 7], "groups_width": 16}, images),
    "ConvNextForImageClassification": (NARROW, images),
    "ConvNextV2ForImageClassification": (NARROW, images),
    "MobileNetV1ForImageClassification": ({}, images),
    "MobileNetV2ForImageClassification": ({}, images),
    "MobileNetV2ForSemanticSegmentation": ({}, images),
    "MobileViTForImageClassification": ({}, lambda: images(256)),
    "MobileViTForSemanticSegmentation": ({}, lambda: images(256)),
    "MobileViTV2ForImageClassification": ({}, lambda: images(256)),
    "EfficientNetForImageClassification": (
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 224}, images
    ),
    "BitForImageClassification": ({}, images),
    "PoolFormerForImageClassification": ({}, images),
    "CvtForImageClassification": ({}, images),
    "LevitForImageClassification": ({}, images),
    "FocalNetForImageClassification": ({}, images),
    "SwiftFormerForImageClassification": ({}, images),
    "PvtV2ForImageClassification": ({}, images),
    "HGNetV2ForImageClassification": ({}, images),
    "TextNetForImageClassification": ({}, images),
    "DINOv3ConvNextModel": (NARROW, images),
    "SegformerForSemanticSegmentation": ({}, images),
    "UperNetForSemanticSegmentation": ({"hidden_size": 64, "pool_scales": [1, 2]}, images),
    "DetrForObjectDetection": (
        {"use_timm_backbone": False, "use_pretrained_backbone": False, "encoder_layers": 2, "decoder_layers": 2}, images,
    ),
    "RTDetrForObjectDetection": ({}, lambda: images(256)),
    "RTDetrV2ForObjectDetection": ({}, lambda: images(256)),
    "DFineForObjectDetection": ({}, lambda: images(256)),
    "SuperPointForKeypointDetection": ({}, images),
    "SpeechT5HifiGan": ({}, lambda: torch.randn(1, 40, 80)),
    "UnivNetModel": ({}, lambda: torch.randn(1, 40, 100)),
    "EncodecModel": ({}, lambda: torch.randn(1, 1, 4800)),
    "DacModel": ({"encoder_hidden_size": 16, "decoder_hidden_size": 256}, lambda: torch.randn(1, 1, 5120)),
    "Wav2Vec2Model": ({"num_hidden_layers": 2}, lambda: torch.randn(1, 8000)),
}  # fmt: skip


def transformers() -> list[Network]:
    """The CNNs of transformers, and what is built around one; from their configurations."""
    importlib.import_module("transformers")
    vision.torchvision()

    def build(name: str, settings: dict[str, Any], inputs: Callable[[], Any]) -> Built:
        kind = attribute(f"transformers:{name}")
        configured = kind.config_class(**settings)
        if name.startswith("UperNet"):
            back = attribute("transformers:ConvNextConfig")(**NARROW, out_features=[f"stage{i}" for i in range(1, 5)])
            configured = kind.config_class(backbone_config=back, **settings)
        return kind(configured), inputs()

    rows = {name: (lambda n=name, s=s, i=i: build(n, s, i)) for name, (s, i) in TRANSFORMERS.items()}
    return of("transformers", rows)


D3 = {"spatial_dims": 3}
WAYS = {**D3, "in_channels": 1, "out_channels": 2}
STEPS: dict[str, Any] = {"channels": (8, 16, 32, 64), "strides": (2, 2, 2)}
ENDS: dict[str, Any] = {"channels": (8, 16, 32), "strides": (2, 2, 2)}
MONAI: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "UNet": (WAYS | STEPS | {"num_res_units": 2}, volume),
    "BasicUNet": (WAYS | {"features": (8, 8, 16, 32, 64, 8)}, volume),
    "BasicUNetPlusPlus": (WAYS | {"features": (8, 8, 16, 32, 64, 8)}, volume),
    "AttentionUnet": (WAYS | STEPS, volume),
    "DynUNet": (
        WAYS | {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [8, 16, 32]}, volume,
    ),
    "SegResNet": (WAYS | {"init_filters": 8}, volume),
    "SegResNetDS": (WAYS | {"init_filters": 8, "norm": "batch"}, volume),
    "SegResNetVAE": (WAYS | {"init_filters": 8, "input_image_size": (32, 32, 32)}, volume),
    "VNet": (D3 | {"in_channels": 1, "out_channels": 2}, volume),
    "RegUNet": (D3 | {"in_channels": 1, "num_channel_initial": 8, "depth": 3, "out_channels": 3}, volume),
    "HighResNet": (D3 | {"in_channels": 1, "out_channels": 2}, volume),
    "FlexibleUNet": ({"in_channels": 1, "out_channels": 2, "backbone": "efficientnet-b0", "spatial_dims": 3}, volume),
    "AHNet": (WAYS, lambda: torch.randn(1, 1, 128, 128, 32)),
    "MedNeXt": ({"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "init_filters": 8}, volume),
    "DenseNet121": (D3 | {"in_channels": 1, "out_channels": 2}, volume),
    "SEResNet50": (D3 | {"in_channels": 1, "num_classes": 2}, volume),
    "SENet154": (D3 | {"in_channels": 1, "num_classes": 2}, volume),
    "EfficientNetBN": ({"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 3, "in_channels": 1}, volume),
    "resnet18": (D3 | {"n_input_channels": 1, "num_classes": 2}, volume),
    "resnet50": (D3 | {"n_input_channels": 1, "num_classes": 2}, volume),
    "AutoEncoder": (WAYS | ENDS, volume),
    "VarAutoEncoder": (D3 | ENDS | {"in_shape": (1, 32, 32, 32), "out_channels": 1, "latent_size": 8}, volume),
    "AutoencoderKL": (
        WAYS | {"channels": (32, 32, 64), "num_res_blocks": (1, 1, 1), "attention_levels": (False, False, True)}, volume,
    ),
    "VQVAE": (
        WAYS | {"channels": (16, 32), "num_res_channels": (16, 32), "num_res_layers": 1,
                "downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}, volume,
    ),
    "DiffusionModelUNet": (
        WAYS | {"channels": (32, 64), "num_res_blocks": 1, "attention_levels": (False, True), "num_head_channels": 32},
        lambda: (volume(16), torch.tensor([3])),
    ),
    "UNETR": (
        {"in_channels": 1, "out_channels": 2, "img_size": 32, "feature_size": 8, "hidden_size": 48, "mlp_dim": 96,
         "num_heads": 4}, volume,
    ),
    "SwinUNETR": ({"in_channels": 1, "out_channels": 2, "feature_size": 12}, lambda: volume(64)),
    "Regressor": ({"in_shape": (1, 32, 32, 32), "out_shape": (2,), "channels": (8, 16), "strides": (2, 2)}, volume),
    "Discriminator": ({"in_shape": (1, 32, 32, 32), "channels": (8, 16), "strides": (2, 2)}, volume),
    "PatchDiscriminator": (D3 | {"channels": 16, "in_channels": 1, "num_layers_d": 2}, volume),
    "HoVerNet": ({"mode": "fast"}, lambda: images(256)),
    "Quicknat": ({"num_channels": 1, "num_filters": 16}, lambda: images(64, 1)),
}  # fmt: skip


def monai() -> list[Network]:
    """MONAI's networks, on volumes where they have three spatial axes."""
    importlib.import_module("monai.networks.nets")

    def build(name: str, settings: dict[str, Any], inputs: Callable[[], Any]) -> Built:
        return attribute(f"monai.networks.nets:{name}")(**settings), inputs()

    return of("monai", {name: (lambda n=name, s=s, i=i: build(n, s, i)) for name, (s, i) in MONAI.items()})


NOISE = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}
DOWN2, UP2 = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
VAE = {"block_out_channels": (32, 64), "norm_num_groups": 8, "down_block_types": ("DownEncoderBlock2D",) * 2}
DIFFUSERS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "UNet2DModel": (NOISE | {"down_block_types": DOWN2, "up_block_types": UP2}, lambda: (images(32), 7)),
    "UNet2DConditionModel": (
        NOISE | {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 32,
                 "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4},
        lambda: (images(32, 4), 7, torch.randn(1, 8, 32)),
    ),
    "UNet1DModel": ({"block_out_channels": (32, 32, 64), "extra_in_channels": 64}, lambda: (torch.randn(1, 2, 512), 7)),
    "UNet3DConditionModel": (
        NOISE | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "cross_attention_dim": 32,
                 "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "attention_head_dim": 8},
        lambda: (torch.randn(1, 4, 2, 32, 32), 7, torch.randn(1, 8, 32)),
    ),
    "AutoencoderKL": (VAE | {"up_block_types": ("UpDecoderBlock2D",) * 2}, lambda: images(64)),
    "AsymmetricAutoencoderKL": (
        {"down_block_out_channels": (32, 64), "up_block_out_channels": (32, 64), "norm_num_groups": 8,
         "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}, lambda: images(64),
    ),
    "AutoencoderTiny": ({}, lambda: images(64)),
    "VQModel": (VAE | {"up_block_types": ("UpDecoderBlock2D",) * 2}, lambda: images(64)),
    "AutoencoderKLTemporalDecoder": (
        {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2},
        lambda: {"sample": images(64, batch=2), "num_frames": 2},
    ),
    "AutoencoderDC": (
        {"encoder_block_out_channels": (32, 64), "decoder_block_out_channels": (32, 64), "encoder_layers_per_block": (1, 1),
         "decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)),
         "encoder_block_types": ("ResBlock", "EfficientViTBlock"), "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
         "latent_channels": 8, "attention_head_dim": 16}, lambda: images(64),
    ),
    "ControlNetModel": (
        {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1, "cross_attention_dim": 32,
         "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4},
        lambda: (images(32, 4), 7, torch.randn(1, 8, 32), images(256)),
    ),
}  # fmt: skip


def diffusers() -> list[Network]:
    """UNets and autoencoders of diffusers, narrow."""
    vision.torchvision()
    importlib.import_module("diffusers")

    def build(name: str, settings: dict[str, Any], inputs: Callable[[], Any]) -> Built:
        return attribute(f"diffusers:{name}")(**settings), inputs()

    return of("diffusers", {name: (lambda n=name, s=s, i=i: build(n, s, i)) for name, (s, i) in DIFFUSERS.items()})
