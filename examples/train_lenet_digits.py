"""LeNet-5 (LeCun et al. 1998) trained on real digits, every convolution on cnnkern's kernels, forward and backward.

pip install cnnkern[train]
python examples/train_lenet_digits.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import cnnkern

EPOCHS = 15
BATCH = 32


def lenet5() -> nn.Sequential:
    """CONV-POOL-CONV-POOL-FC-FC-FC on 1x32x32, with 5x5 filters and 2x2 pools, ReLU for tanh."""
    return nn.Sequential(
        cnnkern.Conv2d(1, 6, 5),  # 6x28x28
        nn.ReLU(),
        nn.MaxPool2d(2),
        cnnkern.Conv2d(6, 16, 5),  # 16x10x10
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),  # 400
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 scanned digits of 8x8 pixels, as 1x32x32 images of mean 0 and deviation 1, and labels."""
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:, None], size=32, mode="bilinear")
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def jitter(images: Tensor) -> Tensor:
    """Each image turned, sheared, scaled and moved a little, at random."""
    affine = torch.eye(2, 3) + 0.1 * torch.randn(len(images), 2, 3)
    return F.grid_sample(
        images,
        F.affine_grid(affine, list(images.shape), align_corners=False),
        align_corners=False,
        padding_mode="border",
    )


def train(seed: int = 3) -> float:
    """Trains on four fifths of the digits; returns the accuracy on the rest."""
    torch.manual_seed(seed)
    images, labels = digits()
    train_set, test_set = torch.randperm(len(images)).split([1437, 360])
    model = lenet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for epoch in range(EPOCHS):
        for batch in train_set[torch.randperm(len(train_set))].split(BATCH):
            loss = F.cross_entropy(model(jitter(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch + 1:2}  loss {loss.item():.4f}")
    with torch.no_grad():
        return (model(images[test_set]).argmax(1) == labels[test_set]).float().mean().item()


if __name__ == "__main__":
    with cnnkern.use(fallback="raise"):  # an error if any convolution would leave cnnkern's kernels
        print(f"test accuracy {train():.1%}")
