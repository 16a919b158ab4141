"""What each of two processes computes for tests/test_training_distributed.py, which starts them with torchrun.

Each writes its results to the directory given as <what>-<rank>.pt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import cnnkern
from cnnkern.models.alexnet import TABLES, features
from cnnkern.training import Recipe, Trainer, model_parallel
from cnnkern.training.data import Data
from cnnkern.training.distributed import process_group
from cnnkern.training.sync_batch_norm import convert_sync_batch_norm

PARTS = (3, 5)  # images of each process, for batch normalisation
RECIPE = Recipe(epochs=3, lr=0.05, batch=16, weight_decay=1e-3, polyak=0.9)


def images_for_batch_norm():
    """Far from mean 0, where a sum of squares would lose the variance; and what reaches the result's gradient."""
    generator = torch.Generator().manual_seed(1)
    x = 100 + 0.05 * torch.randn(sum(PARTS), 4, 5, 6, generator=generator, dtype=torch.float64)
    return x, torch.randn(x.shape, generator=generator, dtype=torch.float64)


def batch_norm(dtype):
    """With parameters and running statistics that are not the initial ones, in the middle of a run."""
    torch.manual_seed(2)
    bn = nn.BatchNorm2d(4, momentum=0.2, dtype=dtype)
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.bias)
    return bn


def results_of_batch_norm(bn, x, dy):
    """y and dx of a step in training, the parameters' gradients, the statistics, and y in eval mode."""
    x = x.clone().requires_grad_()
    y = bn(x)
    y.backward(dy)
    statistics = [bn.running_mean, bn.running_var, bn.num_batches_tracked]
    return [tensor.detach().clone() for tensor in (y, x.grad, bn.weight.grad, bn.bias.grad, *statistics, bn.eval()(x))]


def network():
    """Fused blocks, strided and not, and a classifier."""
    torch.manual_seed(3)
    blocks = [cnnkern.ConvBNReLU2d(2, 6, 3, padding=1), cnnkern.ConvBNReLU2d(6, 8, 3, stride=2, padding=1)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def data():
    """44 images to train on, in batches of 16, 16 and 12."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(70, 2, 8, 8, generator=generator)
    labels = (images.mean(dim=(1, 2, 3)) * 60).long() % 3
    parts = zip(images.split([44, 13, 13]), labels.split([44, 13, 13]), strict=True)
    sets = [torch.utils.data.TensorDataset(*part) for part in parts]
    mean = torch.full((2, 1, 1), 0.5)
    return Data(*sets, classes=("a", "b", "c"), size=8, mean=mean, deviation=mean / 2)


def results_of_training():
    """The history without times, and the weights of the model and of its average."""
    trainer = Trainer(network(), data(), RECIPE)
    rows = [[getattr(row, name) for name in vars(row) if name != "seconds"] for row in trainer.fit()]
    return torch.tensor(rows, dtype=torch.float64), trainer.model.state_dict(), trainer.predictor().state_dict()


def resumed_training():
    """The weights of a run that went on from its state after the first of three epochs."""
    first, second = Trainer(network(), data(), RECIPE), Trainer(network(), data(), RECIPE)
    first.train_epoch()
    second.restore(first.state())
    second.fit()
    return second.model.state_dict()


def grouped_alexnet():
    """The layers of AlexNet as on two GPUs, with an eighth of its maps and few neurons."""
    torch.manual_seed(5)
    table = [(row[0] // 8, *row[1:]) if isinstance(row, tuple) else row for row in TABLES["alexnet_two_gpu"]]
    layers, maps = features(table, 3)
    hidden = [nn.Linear(maps * 4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(24, 10)).double()


def results_of_alexnet(model):
    """The logits and the gradients of one step."""
    torch.manual_seed(6)
    images, labels = torch.randn(3, 3, 99, 99, dtype=torch.float64), torch.tensor([1, 7, 7])
    logits = model(images)
    nn.functional.cross_entropy(logits, labels).backward()
    return logits.detach(), [parameter.grad for parameter in model.parameters()]


def main(out):
    with process_group():
        rank = dist.get_rank()
        for dtype in (torch.float64, torch.float32):
            bn = convert_sync_batch_norm(batch_norm(dtype))
            x, dy = (tensor.split(PARTS)[rank].to(dtype) for tensor in images_for_batch_norm())
            torch.save(results_of_batch_norm(bn, x, dy), out / f"{dtype}-{rank}.pt")
        torch.save(results_of_training(), out / f"training-{rank}.pt")
        torch.save(resumed_training(), out / f"resumed-{rank}.pt")
        torch.save(results_of_alexnet(model_parallel.split(grouped_alexnet(), rank)), out / f"alexnet-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
