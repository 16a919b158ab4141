"""What is trained on: scikit-learn's digits, and any folder with a directory of images per class.

Images are tensors (C, side, side) in [0, 1]. The splits are fixed: those of one permutation of a seed of its own, so
that a run's seed changes the weights and the order and never what is held out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

SPLIT_SEED = 0
VALIDATION, TEST = 0.1, 0.2  # the shares that are held out
ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MEASURED = 1000  # images that are enough for a mean and a deviation per channel


@dataclass(frozen=True)
class Data:
    """Three disjoint sets of images with labels, and what a network has to know of them."""

    train: Dataset
    validation: Dataset
    test: Dataset
    classes: tuple[str, ...]
    size: int
    """Height and width of the network's input; the sets' images may be larger, for crops to be cut from them."""
    mean: Tensor
    """(C, 1, 1), or the mean image (C, side, side), of the training set."""
    deviation: Tensor
    """(C, 1, 1), of the training set."""
    workers: int = 0
    """Processes that load images."""

    @property
    def channels(self) -> int:
        """C."""
        return len(self.mean)

    def normalise(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) with mean 0 and deviation 1 over the training set; a mean image is scaled to theirs."""
        mean = self.mean.to(images.device)
        if mean.shape[1] > 1:
            mean = F.interpolate(mean[None], size=images.shape[2:], mode="bilinear")[0]
        return (images - mean) / self.deviation.to(images.device)


class ImageFolder(Dataset):
    """The images under ``folder/<class>/``, in the order of their names.

    An item is an image (3, side, side) in [0, 1], scaled until its shorter side is ``side`` and cut from its middle,
    and the number of its class. torchvision.datasets has readers of the published sets; any of them can be a split.
    """

    def __init__(self, folder: Path, side: int) -> None:
        self.classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in ENDINGS
        ]
        self.side = side
        if len(self.files) < 3:
            raise ValueError(f"{folder} has {len(self.files)} images: expected {folder}/<class>/<image>.png and so on")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, ImageOps

        path, label = self.files[index]
        with Image.open(path) as file:
            image = ImageOps.fit(file.convert("RGB"), (self.side, self.side), Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(self.side, self.side, 3).permute(2, 0, 1) / 255, label


def digits(size: int = 32, resize: float = 1.0) -> Data:
    """scikit-learn's 1,797 scanned digits of 8x8 pixels, interpolated to 1 x side x side."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    side = round(size * resize)
    small = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(small, size=side, mode="bilinear")
    return _split(TensorDataset(images, torch.tensor(bunch.target)), tuple(map(str, bunch.target_names)), size)


def folder(path: Path, size: int = 224, resize: float = 1.0, workers: int = 2) -> Data:
    """The images under ``path/<class>/``, loaded as they are needed. Raises ValueError where there are too few."""
    images = ImageFolder(path, round(size * resize))
    return _split(images, images.classes, size, workers)


def load(name: str, size: int, resize: float = 1.0) -> Data:
    """The digits, if ``name`` is "digits", or the folder of that name, for a network's input of ``size``.

    ``resize`` is the images' side as a multiple of ``size``.
    """
    if name == "digits":
        return digits(size, resize)
    if not Path(name).is_dir():
        raise ValueError(f"{name!r} is neither 'digits' nor a folder")
    return folder(Path(name), size, resize)


def with_mean_image(data: Data) -> Data:
    """The same, with the mean image subtracted in place of a mean per channel (Krizhevsky et al. 2012, section 2)."""
    images, _ = first(data.train, MEASURED)
    return replace(data, mean=images.mean(0))


def first(dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, side, side) and labels (N,) spread evenly over a set, at most ``count``."""
    total = len(dataset)  # type: ignore[arg-type]
    pairs = [dataset[index * total // min(count, total)] for index in range(min(count, total))]
    return torch.stack([image for image, _ in pairs]), torch.tensor([int(label) for _, label in pairs])


def _split(dataset: Dataset, classes: tuple[str, ...], size: int, workers: int = 0) -> Data:
    total = len(dataset)  # type: ignore[arg-type]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    validation, test = max(1, round(VALIDATION * total)), max(1, round(TEST * total))
    train = Subset(dataset, order[validation + test :])
    images, _ = first(train, MEASURED)
    deviation, mean = torch.std_mean(images, dim=(0, 2, 3))
    return Data(
        train=train,
        validation=Subset(dataset, order[:validation]),
        test=Subset(dataset, order[validation : validation + test]),
        classes=classes,
        size=size,
        mean=mean.view(-1, 1, 1),
        deviation=deviation.clamp_min(1e-6).view(-1, 1, 1),
        workers=workers,
    )
