"""Audio, text recognition, super-resolution and restoration."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coverage_networks.network import Built, Network, attribute, images, of
from secateurs.zoo import vision


def audio() -> list[Network]:
    """torchaudio's networks with convolutions, and a recurrent one behind a CNN."""
    models = importlib.import_module("torchaudio.models")

    def wave(samples: int = 4000) -> Tensor:
        return torch.randn(1, 1, samples)

    rows: dict[str, Callable[[], Built]] = {
        "ConvTasNet": lambda: (models.ConvTasNet(enc_num_feats=64, msk_num_feats=32, msk_num_hidden_feats=64), wave()),
        "Wav2Letter": lambda: (models.Wav2Letter(num_classes=40), wave(8000)),
        "Wav2Letter(mfcc)": lambda: (models.Wav2Letter(40, "mfcc", 13), torch.randn(1, 13, 200)),
        "DeepSpeech": lambda: (models.DeepSpeech(n_feature=64, n_hidden=128), torch.randn(1, 1, 40, 64)),
        "HDemucs": lambda: (models.hdemucs_low(sources=["a", "b"]), torch.randn(1, 2, 22050)),
        "Conformer": lambda: (
            models.Conformer(input_dim=144, num_heads=4, ffn_dim=576, num_layers=16, depthwise_conv_kernel_size=31),
            (torch.randn(1, 400, 144), torch.tensor([400])),  # "S" of the paper, four seconds
        ),
        "WaveRNN": lambda: (
            models.WaveRNN(upsample_scales=[4, 4], n_classes=64, hop_length=16, n_rnn=32, n_fc=32, n_res_block=2),
            (torch.randn(1, 1, 16 * 6), torch.randn(1, 1, 128, 10)),
        ),
        "wav2vec2": lambda: (
            models.wav2vec2_model("group_norm", None, False, 64, 0.0, 16, 4, 2, 4, 0.0, 128, 0.0, 0.0, False, 0.0, 32),
            torch.randn(1, 8000),
        ),
        "CRNN": lambda: (CRNN(), torch.randn(1, 1, 32, 100)),
    }  # fmt: skip
    return of("audio", rows)


class CRNN(nn.Module):
    """Text recognition (Shi et al., 2015): a CNN, then a bidirectional LSTM over the columns."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128)
        self.cnn = nn.Sequential(*(
            layer for a, b in itertools.pairwise(widths)
            for layer in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        ))  # fmt: skip
        self.rnn = nn.LSTM(128 * 4, 64, bidirectional=True, batch_first=True)
        self.head = nn.Linear(128, 37)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 32, W) → (N, W / 8, classes)
        x = self.cnn(x).flatten(1, 2).transpose(1, 2)
        return self.head(self.rnn(x)[0])


class ESPCN(nn.Sequential):
    """Sub-pixel convolutions (Shi et al., 2016)."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()),
            *(nn.Conv2d(32, 27, 3, padding=1), nn.PixelShuffle(3)),
        )


class EDSR(nn.Module):
    """Residual blocks without batch norm, a long shortcut, pixel shuffles (Lim et al., 2017)."""

    def __init__(self, width: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = start = self.head(x)
        for block in self.body:
            x = x + 0.1 * block(x)
        return self.tail(self.up(x + start))


SPANDREL: dict[str, dict[str, Any]] = {
    "ESRGAN/__arch/RRDB:RRDBNet": {"num_filters": 32, "num_blocks": 3},
    "Compact/__arch/SRVGG:SRVGGNetCompact": {},
    "SPAN/__arch/span:SPAN": {"num_in_ch": 3, "num_out_ch": 3},
    "RCAN/__arch/rcan_arch:RCAN": {"n_resgroups": 2, "n_resblocks": 2},
    "SAFMN/__arch/safmn:SAFMN": {"dim": 36},
    "PLKSR/__arch/PLKSR:PLKSR": {"n_blocks": 4},
    "PLKSR/__arch/RealPLKSR:RealPLKSR": {"n_blocks": 4},
    "MoSR/__arch/mosr_arch:MoSR": {"n_block": 4},
    "SwiftSRGAN/__arch/SwiftSRGAN:Generator": {},
    "DnCNN/__arch/network_dncnn:DnCNN": {},
    "DRUNet/__arch/network_unet:DRUNet": {"nc": [16, 32, 48, 64], "nb": 2},
    "FBCNN/__arch/FBCNN:FBCNN": {"nc": [16, 32, 48, 512], "nb": 1},
    "NAFNet/__arch/NAFNet_arch:NAFNet": {"enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]},
    "RealCUGAN/__arch/upcunet_v3:UpCunet2x": {},
    "OmniSR/__arch/OmniSR:OmniSR": {},
    "SCUNet/__arch/SCUNet:SCUNet": {},
    "SwinIR/__arch/SwinIR:SwinIR": {"img_size": 32, "window_size": 8, "embed_dim": 36, "depths": [2, 2], "num_heads": [3, 3]},
    "SeemoRe/__arch/seemore_arch:SeemoRe": {"topk": 6},  # all experts: they cost different amounts, and a cut may choose others
}  # fmt: skip


def superres() -> list[Network]:
    """Super-resolution and restoration: two of our own, and Spandrel's."""
    vision.torchvision()
    importlib.import_module("spandrel")

    def build(path: str, settings: dict[str, Any]) -> Built:
        network = attribute("spandrel.architectures." + path.replace("/", "."))(**settings)
        channels = next(m for m in network.modules() if isinstance(m, nn.Conv2d)).in_channels
        return network, images(64, channels if path.startswith(("DnCNN", "DRUNet")) else 3)

    rows: dict[str, Callable[[], Built]] = {
        "ESPCN": lambda: (ESPCN(), images(64)),
        "EDSR": lambda: (EDSR(), images(64)),
    }
    for path, settings in SPANDREL.items():
        rows[path.rpartition(":")[2]] = lambda path=path, settings=settings: build(path, settings)
    return of("superres", rows)
