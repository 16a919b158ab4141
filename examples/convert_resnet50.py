"""A ResNet-50 in plain torch.nn moved to cnnkern's kernels, checked layer by layer on a photograph, and timed.

pip install cnnkern[train]
python examples/convert_resnet50.py
"""

import statistics
import time

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F

import cnnkern
from cnnkern.bench import networks


def photograph() -> Tensor:
    """One of scikit-learn's sample photographs as a 1x3x224x224 image."""
    pixels = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None] / 255
    return F.interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True)


def milliseconds(model: nn.Module, image: Tensor, repeats: int = 5) -> float:
    """Median time of one forward pass."""
    times = []
    for _ in range(repeats + 1):  # the first chooses kernels and is not counted
        start = time.perf_counter()
        model(image)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:])


@torch.no_grad()
def main() -> None:
    """Converts, verifies, compares and times."""
    torch.manual_seed(0)
    model, image = networks.build("resnet50").eval(), photograph()
    channels_last = image.to(memory_format=torch.channels_last)
    scores, before = model(image), milliseconds(model, image)

    print(cnnkern.convert(model, verify=True, example=image))

    difference = (model(image) - scores).abs().max() / scores.abs().max()
    print(f"largest relative difference of the scores: {difference.item():.1e}")
    print(f"torch {before:.1f} ms, converted {milliseconds(model, channels_last):.1f} ms")


if __name__ == "__main__":
    main()
