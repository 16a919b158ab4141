"""Random changes to a batch of images that keep their class, each image its own, in plain torch on any device.

A *crop* takes images (N, C, H, W) in [0, 1] and the network's input size and gives (N, C, size, size); a *change* takes
and gives images of one size. They draw from torch's default generator. torchvision.transforms.v2 has more of them, and
antialiased ones; it works on a loader's images where torchvision is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Crop = Callable[[Tensor, int], Tensor]
Change = Callable[[Tensor], Tensor]

GREY = (0.299, 0.587, 0.114)  # the luma of ITU-R BT.601


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle (N, C, size, size) of images at least as large."""
    top, left = ((side - size) // 2 for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]


def random_crop(images: Tensor, size: int, padding: int = 0) -> Tensor:
    """A window of ``size`` at a random place of each image, after ``padding`` black pixels on every side.

    AlexNet cuts 224 from 256 (Krizhevsky et al. 2012, section 4.1); ResNet on 32x32 images pads by 4 (He et al. 2015,
    arXiv 1512.03385, section 4.2).
    """
    windows = F.pad(images, [padding] * 4).unfold(2, size, 1).unfold(3, size, 1)
    n, _, rows, columns = windows.shape[:4]
    top, left = (torch.randint(count, (n,), device=images.device) for count in (rows, columns))
    return windows[torch.arange(n, device=images.device), :, top, left]


def random_resized_crop(
    images: Tensor, size: int, shares: tuple[float, float] = (0.28, 1.0), aspect: float = 4 / 3
) -> Tensor:
    """A random part of each image, scaled to ``size`` with bilinear interpolation.

    Args:
        images: (N, C, H, W).
        size: of the result.
        shares: the least and the greatest share of the image's side that is seen. With the side as the unit,
            ResNet's short sides in [256, 480] for crops of 224 are shares of (224 / 480, 224 / 256).
        aspect: the greatest ratio of the part's sides. Shares of (0.28, 1), 8% to all of the area, with 4 / 3 are
            GoogLeNet's (Szegedy et al. 2014, arXiv 1409.4842, section 6).
    """
    n, c = images.shape[:2]
    low, high = shares
    share = 1 / torch.empty(n).uniform_(1 / high, 1 / low)
    stretch = torch.empty(n).uniform_(-0.5, 0.5).mul(math.log(aspect)).exp()
    sides = torch.stack([share * stretch, share / stretch], dim=1).clamp_max(1.0)
    offsets = torch.empty(n, 2).uniform_(-1, 1) * (1 - sides)
    views = torch.cat([torch.diag_embed(sides), offsets[:, :, None]], dim=2).to(images)
    return F.grid_sample(images, F.affine_grid(views, [n, c, size, size], False), align_corners=False)


def horizontal_flip(images: Tensor) -> Tensor:
    """Each image or, with probability 1/2, its mirror image."""
    return torch.where(_uniform(images, 0, 1) < 0.5, images.flip(3), images)


def random_affine(images: Tensor, spread: float = 0.1) -> Tensor:
    """Each image turned, sheared, scaled and moved a little: the entries of the map deviate normally by ``spread``."""
    views = torch.eye(2, 3) + spread * torch.randn(len(images), 2, 3)
    grid = F.affine_grid(views.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def colour_jitter(images: Tensor, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4) -> Tensor:
    """Brightness, contrast and saturation (N, C, H, W) changed by factors in 1 plus or minus the argument.

    Each image is blended, in this order, with black, with its mean grey and with its own grey (Howard 2013, arXiv
    1312.5402).
    """
    images = images * _uniform(images, 1 - brightness, 1 + brightness)
    mean = _grey(images).mean(dim=(2, 3), keepdim=True)
    images = torch.lerp(mean.expand_as(images), images, _uniform(images, 1 - contrast, 1 + contrast))
    images = torch.lerp(_grey(images).expand_as(images), images, _uniform(images, 1 - saturation, 1 + saturation))
    return images.clamp(0, 1)


def colour_axes(images: Tensor) -> Tensor:
    """The principal axes of the colours of images (N, C, H, W): (C, C), a column each, as long as their deviation."""
    channels = images.shape[1]
    covariance = torch.cov(images.transpose(0, 1).flatten(1).double()).view(channels, channels)  # of one, a scalar
    variances, axes = torch.linalg.eigh(covariance)
    return (axes * variances.clamp_min(0).sqrt()).to(images.dtype)


def pca_colour(images: Tensor, spread: float = 0.1, axes: Tensor | None = None) -> Tensor:
    """One colour added to each image (N, C, H, W): a normal step of deviation ``spread`` along each principal axis.

    Krizhevsky et al. 2012, section 4.1, with steps in deviations, where the paper's are in variances of 8-bit values.
    ``axes`` are those of the training set (:func:`colour_axes`); None takes the batch's, an estimate of them.
    """
    axes = colour_axes(images) if axes is None else axes.to(images)
    steps = spread * torch.randn(images.shape[:2]).to(images)
    return images + (steps @ axes.T)[:, :, None, None]


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """A number per image, (N, 1, 1, 1)."""
    return torch.empty(len(images), 1, 1, 1).uniform_(low, high).to(images)


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W): the luma of three channels, the mean of any other number."""
    if images.shape[1] != len(GREY):
        return images.mean(1, keepdim=True)
    return (images * torch.tensor(GREY).to(images)[:, None, None]).sum(1, keepdim=True)
