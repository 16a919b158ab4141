"""Inception v3 (Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, arXiv 1512.00567): 7x7 filters as 1x7 and 7x1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnkern.models._blocks import AvgPool2d, GlobalAvgPool2d, initialise, named_conv_bn
from cnnkern.models._inception import layer
from cnnkern.models._network import Network, Outputs, check_size
from cnnkern.models._registry import register
from cnnkern.models.googlenet import between_minus_one_and_one

Branches = dict[str, str]


def module_a(pooled: int) -> Branches:
    """5x5, and two 3x3."""
    return {
        "branch1x1": "1x1 64",
        "branch5x5": "1x1 48, 5x5 64",
        "branch3x3dbl": "1x1 64, 3x3 96, 3x3 96",
        "branch_pool": f"zavg, 1x1 {pooled}",
    }


def module_c(c: int) -> Branches:
    """7x7 as 1x7 and 7x1, once and twice."""
    return {
        "branch1x1": "1x1 192",
        "branch7x7": f"1x1 {c}, 1x7 {c}, 7x1 192",
        "branch7x7dbl": f"1x1 {c}, 7x1 {c}, 1x7 {c}, 7x1 {c}, 1x7 192",
        "branch_pool": "zavg, 1x1 192",
    }


MODULE_B = {"branch3x3": "3x3/2v 384", "branch3x3dbl": "1x1 64, 3x3 96, 3x3/2v 96", "branch_pool": "max/2v"}
MODULE_D = {
    "branch3x3": "1x1 192, 3x3/2v 320",
    "branch7x7x3": "1x1 192, 1x7 192, 7x1 192, 3x3/2v 192",
    "branch_pool": "max/2v",
}
MODULE_E = {  # 3x3 as 1x3 and 3x1 side by side
    "branch1x1": "1x1 320",
    "branch3x3": "1x1 384, [1x3 384 | 3x1 384]",
    "branch3x3dbl": "1x1 448, 3x3 384, [1x3 384 | 3x1 384]",
    "branch_pool": "zavg, 1x1 192",
}
TABLE: dict[str, str | Branches] = {
    "Conv2d_1a_3x3": "3x3/2v 32",
    "Conv2d_2a_3x3": "3x3v 32",
    "Conv2d_2b_3x3": "3x3 64",
    "maxpool1": "max/2v",
    "Conv2d_3b_1x1": "1x1 80",
    "Conv2d_4a_3x3": "3x3v 192",
    "maxpool2": "max/2v",
    "Mixed_5b": module_a(32),
    "Mixed_5c": module_a(64),
    "Mixed_5d": module_a(64),
    "Mixed_6a": MODULE_B,
    "Mixed_6b": module_c(128),
    "Mixed_6c": module_c(160),
    "Mixed_6d": module_c(160),
    "Mixed_6e": module_c(192),
    "Mixed_7a": MODULE_D,
    "Mixed_7b": MODULE_E,
    "Mixed_7c": MODULE_E,
}
AUXILIARY = "Mixed_6e"  # what the auxiliary classifier reads


class Inception(nn.Module):
    """Branches side by side; the convolutions of a branch ``b`` are named ``b``, or ``b_1``, ``b_2a``, ``b_2b``, ..."""

    def __init__(self, c_in: int, branches: Branches) -> None:
        super().__init__()
        self.paths = []
        self.maps = 0
        for branch, text in branches.items():
            path, maps = self._add(branch, text, c_in)
            self.paths.append(path)
            self.maps += maps

    def _add(self, branch: str, text: str, c_in: int) -> tuple[list[list[str]], int]:
        """Adds the layers of a branch; returns their names, those side by side together, and the maps they give."""
        path = []
        for names, layers in _named_layers(branch, text):
            built = [layer(c_in, text) for text in layers]
            for name, (module, _) in zip(names, built, strict=True):
                self.add_module(name, module)
            c_in = sum(maps for _, maps in built)
            path.append(names)
        return path, c_in

    def forward(self, input: Tensor) -> Tensor:
        """(N, maps, P, Q) of (N, C, H, W)."""
        outputs = []
        for path in self.paths:
            x = [input]
            for names in path:  # layers side by side are the last of their branch
                x = [self.get_submodule(name)(x[0]) for name in names]
            outputs += x
        return torch.cat(outputs, 1)


def _named_layers(branch: str, text: str) -> list[tuple[list[str], list[str]]]:
    """Names and texts of the layers of a branch, in order, those side by side together; pools have no number."""
    steps = [step.split(" | ") for step in text.replace("[", "").replace("]", "").split(", ")]
    pools = [step for step in steps if step[0][0].isalpha()]
    convs = steps[len(pools) :]  # a pool comes first
    named = [([f"{branch}_input"], step) for step in pools]
    for number, step in enumerate(convs, 1):
        letters = "ab" if len(step) > 1 else " "
        names = [f"{branch}_{number}{letter}".strip() if len(convs) > 1 else branch for letter in letters]
        named.append((names, step))
    return named


class Auxiliary(nn.Module):
    """AvgPool-1x1Conv-5x5Conv and a linear layer."""

    def __init__(self, c_in: int, num_classes: int) -> None:
        super().__init__()
        self.avgpool = AvgPool2d(5, 3)
        self.conv0 = named_conv_bn(c_in, 128, 1)
        self.conv1 = named_conv_bn(128, 768, 5, padding=0)
        self.pool = GlobalAvgPool2d()
        self.fc = nn.Linear(768, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W), which is 17x17 pixels or more."""
        return self.fc(self.pool(self.conv1(self.conv0(self.avgpool(input)))).flatten(1))


class InceptionV3(Network):
    """The table, global average pooling, dropout and one linear layer."""

    smallest_with_auxiliary = 299

    def __init__(self, num_classes: int, in_channels: int, aux: bool, dropout: float, transform_input: bool) -> None:
        super().__init__()
        self.transform_input = transform_input
        maps = in_channels
        for name, row in TABLE.items():
            if isinstance(row, str):
                module, maps = layer(maps, row)
            else:
                module = Inception(maps, row)
                maps = module.maps
            self.add_module(name, module)
            if aux and name == AUXILIARY:
                self.AuxLogits = Auxiliary(maps, num_classes)
        self.avgpool = GlobalAvgPool2d()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(maps, num_classes)

    def scores(self, images: Tensor) -> Tensor | Outputs:
        """(N, classes) of (N, C, H, W); in training with the auxiliary one."""
        auxiliary = self.training and hasattr(self, "AuxLogits")
        if auxiliary:
            check_size(images, self.smallest_with_auxiliary, "the auxiliary classifier")
        x = between_minus_one_and_one(images) if self.transform_input else images
        for name in TABLE:
            x = self.get_submodule(name)(x)
            if auxiliary and name == AUXILIARY:
                auxiliary_scores = self.AuxLogits(x)
        scores = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return Outputs(scores, (auxiliary_scores,)) if auxiliary else scores


@register(
    "inception_v3",
    year=2015,
    paper="Szegedy et al., arXiv 1512.00567",
    input_size=(3, 299, 299),
    smallest=75,
    torchvision=True,
)
def inception_v3(
    name: str,
    num_classes: int,
    in_channels: int,
    *,
    aux: bool = True,
    dropout: float = 0.5,
    transform_input: bool = False,
) -> InceptionV3:
    """Inception v3; ``transform_input`` as of googlenet."""
    model = InceptionV3(num_classes, in_channels, aux, dropout, transform_input)
    initialise(model, model.fc, *([model.AuxLogits.fc] if aux else []))
    return model
