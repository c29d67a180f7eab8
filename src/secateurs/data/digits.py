"""scikit-learn's handwritten digits: 1,797 images that ship with a dependency, for the demo."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.data.augment import generator
from secateurs.errors import SpecError

CLASSES = tuple("0123456789")
_SPLIT_SEED = 0  # the validation split is part of the data set, independent of a run's seed


def digits(size: int = 32) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, targets) for training and for validation: (count, size, size, 3) uint8 and (count,) int64.

    A fifth of each class is held out for validation. The 8×8 originals are enlarged, and gray is repeated in three channels.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SpecError("The digits need scikit-learn. Run: pip install 'secateurs[demo]'") from error
    bunch = load_digits()
    gray = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)  # (1797, 1, 8, 8), originally 0…16
    large = F.interpolate(gray, size=(size, size), mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    targets = torch.from_numpy(bunch.target).long()
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    for label in range(len(CLASSES)):
        members = (targets == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(_SPLIT_SEED, label))
        held_out[members[order[: round(len(members) / 5)]]] = True
    return (images[~held_out], targets[~held_out]), (images[held_out], targets[held_out])
