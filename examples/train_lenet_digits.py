"""LeNet-5 (LeCun et al. 1998) trained on real digits, every convolution on cnnkern's kernels, forward and backward.

pip install cnnkern[train]
python examples/train_lenet_digits.py
"""

import torch
from torch import nn

import cnnkern
from cnnkern.training import RECIPES, Trainer, data


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


def train(seed: int = 0) -> float:
    """Trains on 1,258 of scikit-learn's 1,797 digits; returns the accuracy on 359 others."""
    torch.manual_seed(seed)
    trainer = Trainer(lenet5(), data.digits(), RECIPES["digits"], seed=seed)
    for row in trainer.epochs():
        print(f"epoch {row.epoch:2}  loss {row.train_loss:.4f}  validation accuracy {row.validation_accuracy:.1%}")
    return trainer.test()[1]


if __name__ == "__main__":
    with cnnkern.use(fallback="raise"):  # an error if any convolution would leave cnnkern's kernels
        print(f"test accuracy {train():.1%}")
