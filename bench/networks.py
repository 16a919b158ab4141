"""The lectures' networks in plain ``torch.nn``, as tables.

The benchmark takes its layer shapes from them, and a converted model is measured and checked against them. Nothing
here knows of cnnkern: ``build("resnet50")`` is the model that a user would bring. Parameter counts are those of the
published definitions. Weights are random (He et al. 2015), so that activations keep their scale through the depth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 1000

# In place, as the published definitions have them: every use below follows a layer whose output nobody else reads.
relu = partial(nn.ReLU, inplace=True)
relu6 = partial(nn.ReLU6, inplace=True)


class Residual(nn.Module):
    """act(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut if shortcut is not None else nn.Identity()
        self.act = act if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        return self.act(self.body(x) + self.shortcut(x))


class Concat(nn.ModuleList):
    """The branches' outputs side by side along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, sum of K, P, Q) of (N, C, H, W)."""
        return torch.cat([branch(x) for branch in self], dim=1)


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1, **options: Any) -> nn.Conv2d:
    """A convolution padded to keep its size; ``options`` are nn.Conv2d's."""
    return nn.Conv2d(c_in, c_out, kernel, stride, **{"padding": kernel // 2, "bias": False, **options})


def conv_bn(
    c_in: int,
    c_out: int,
    kernel: int,
    stride: int = 1,
    act: Callable[[], nn.Module] | None = relu,
    **options: Any,
) -> nn.Sequential:
    """Convolution, batch normalisation and, unless None, an activation."""
    layers = [conv(c_in, c_out, kernel, stride, **options), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *([act()] if act else []))


def conv_relu(c_in: int, c_out: int, kernel: int, stride: int = 1, **options: Any) -> nn.Sequential:
    """Convolution with a bias, and ReLU."""
    return nn.Sequential(conv(c_in, c_out, kernel, stride, bias=True, **options), relu())


def head(c_in: int) -> list[nn.Module]:
    """Global average pool and one linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, CLASSES)]


def fully_connected_head(c_in: int, size: int) -> list[nn.Module]:
    """The three wide layers with dropout of AlexNet and VGG."""
    features = c_in * size * size
    hidden = [nn.Linear(features, 4096), relu(), nn.Dropout(), nn.Linear(4096, 4096), relu(), nn.Dropout()]
    return [nn.AdaptiveAvgPool2d(size), nn.Flatten(), *hidden, nn.Linear(4096, CLASSES)]


ALEXNET = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]


def alexnet() -> nn.Sequential:
    """One tower, 64-192-384-256-256 maps (Krizhevsky 2014, arXiv 1404.5997)."""
    c1, c2, c3, c4, c5 = (conv_relu(*row, padding=padding) for *row, padding in ALEXNET)
    pools = (nn.MaxPool2d(3, 2) for _ in range(3))
    return nn.Sequential(c1, next(pools), c2, next(pools), c3, c4, c5, next(pools), *fully_connected_head(256, 6))


VGG16 = [(3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3)]  # C in, C out, convolutions


def vgg16() -> nn.Sequential:
    """3x3 filters only (Simonyan and Zisserman 2014, arXiv 1409.1556, configuration D)."""
    layers: list[nn.Module] = []
    for c_in, c_out, count in VGG16:
        layers += [conv_relu(c_in if i == 0 else c_out, c_out, 3) for i in range(count)] + [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, *fully_connected_head(512, 7))


# C in, 1x1, 3x3 reduce, 3x3, second reduce, second 3x3, pool projection; an integer is a max-pool of that size. As in
# the widely used pretrained definition, the second branch has 3x3 filters where the paper has 5x5.
GOOGLENET: list[tuple[int, int, int, int, int, int, int] | int] = [
    (192, 64, 96, 128, 16, 32, 32),
    (256, 128, 128, 192, 32, 96, 64),
    3,
    (480, 192, 96, 208, 16, 48, 64),
    (512, 160, 112, 224, 24, 64, 64),
    (512, 128, 128, 256, 24, 64, 64),
    (512, 112, 144, 288, 32, 64, 64),
    (528, 256, 160, 320, 32, 128, 128),
    2,
    (832, 256, 160, 320, 32, 128, 128),
    (832, 384, 192, 384, 48, 128, 128),
]


def inception(c_in: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int) -> Concat:
    """Four branches of different reach, side by side."""
    return Concat(
        [
            conv_bn(c_in, one, 1),
            nn.Sequential(conv_bn(c_in, reduce3, 1), conv_bn(reduce3, three, 3)),
            nn.Sequential(conv_bn(c_in, reduce5, 1), conv_bn(reduce5, five, 3)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(c_in, pool, 1)),
        ]
    )


def googlenet() -> nn.Sequential:
    """Nine Inception modules (Szegedy et al. 2014, arXiv 1409.4842), with batch norm, no auxiliary classifiers."""

    def pool(size: int) -> nn.MaxPool2d:
        return nn.MaxPool2d(size, 2, ceil_mode=True)

    stem = [conv_bn(3, 64, 7, 2), pool(3), conv_bn(64, 64, 1), conv_bn(64, 192, 3), pool(3)]
    body = [pool(row) if isinstance(row, int) else inception(*row) for row in GOOGLENET]
    model = nn.Sequential(*stem, *body, *head(1024))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-3
    return model


def basic_block(c_in: int, width: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    return nn.Sequential(conv_bn(c_in, width, 3, stride), conv_bn(width, width, 3, act=None))


def bottleneck(c_in: int, width: int, stride: int) -> nn.Sequential:
    """1x1 down, 3x3 (which has the stride), 1x1 up."""
    middle = conv_bn(width, width, 3, stride)
    return nn.Sequential(conv_bn(c_in, width, 1), middle, conv_bn(width, 4 * width, 1, act=None))


def bottleneck_32x4d(c_in: int, width: int, stride: int) -> nn.Sequential:
    """A bottleneck whose 3x3 convolution is 32 paths of 4 maps, at the width of 64."""
    middle = conv_bn(2 * width, 2 * width, 3, stride, groups=32)
    return nn.Sequential(conv_bn(c_in, 2 * width, 1), middle, conv_bn(2 * width, 4 * width, 1, act=None))


# The block, how much wider its output is than its width, and the blocks of the four stages.
RESNETS = {
    "resnet18": (basic_block, 1, (2, 2, 2, 2)),
    "resnet50": (bottleneck, 4, (3, 4, 6, 3)),
    "resnext50_32x4d": (bottleneck_32x4d, 4, (3, 4, 6, 3)),
}


def resnet(name: str) -> nn.Sequential:
    """Residual networks (He et al. 2015, arXiv 1512.03385) and ResNeXt (Xie et al. 2016, arXiv 1611.05431)."""
    block, expansion, stages = RESNETS[name]
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    c_in = 64
    for stage, count in enumerate(stages):
        width = 64 << stage
        c_out = expansion * width
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            shortcut = conv_bn(c_in, c_out, 1, stride, act=None) if stride > 1 or c_in != c_out else None
            layers.append(Residual(block(c_in, width, stride), shortcut, relu()))
            c_in = c_out
    return nn.Sequential(*layers, *head(c_in))


DENSENET121 = (6, 12, 24, 16)
GROWTH = 32


def bn_conv(c_in: int, c_out: int, kernel: int) -> list[nn.Module]:
    """Pre-activation: batch normalisation, ReLU, convolution."""
    return [nn.BatchNorm2d(c_in), relu(), conv(c_in, c_out, kernel)]


def densenet121() -> nn.Sequential:
    """Each layer sees all earlier maps of its block (Huang et al. 2016, arXiv 1608.06993)."""
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for block, count in enumerate(DENSENET121):
        if block > 0:
            layers += [*bn_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            grow = nn.Sequential(*bn_conv(channels, 4 * GROWTH, 1), *bn_conv(4 * GROWTH, GROWTH, 3))
            layers.append(Concat([nn.Identity(), grow]))
            channels += GROWTH
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), relu(), *head(channels))


# C out and stride of each depthwise-separable pair after the stem.
MOBILENET_V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def mobilenet_v1() -> nn.Sequential:
    """Depthwise-separable stacks (Howard et al. 2017, arXiv 1704.04861)."""
    layers = [conv_bn(3, 32, 3, 2)]
    c_in = 32
    for c_out, stride in MOBILENET_V1:
        layers += [conv_bn(c_in, c_in, 3, stride, groups=c_in), conv_bn(c_in, c_out, 1)]
        c_in = c_out
    return nn.Sequential(*layers, *head(c_in))


# Expansion, C out, blocks, stride of the first block.
MOBILENET_V2 = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def inverted_residual(c_in: int, c_out: int, stride: int, expansion: int) -> nn.Module:
    """1x1 to many maps, depthwise 3x3, linear 1x1 to few."""
    width = expansion * c_in
    expand = [conv_bn(c_in, width, 1, act=relu6)] if expansion > 1 else []
    depthwise = conv_bn(width, width, 3, stride, relu6, groups=width)
    body = nn.Sequential(*expand, depthwise, conv_bn(width, c_out, 1, act=None))
    return Residual(body) if stride == 1 and c_in == c_out else body


def mobilenet_v2() -> nn.Sequential:
    """Inverted residuals with linear bottlenecks (Sandler et al. 2018, arXiv 1801.04381)."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, relu6)]
    c_in = 32
    for expansion, c_out, count, stride in MOBILENET_V2:
        for i in range(count):
            layers.append(inverted_residual(c_in, c_out, stride if i == 0 else 1, expansion))
            c_in = c_out
    return nn.Sequential(*layers, conv_bn(c_in, 1280, 1, act=relu6), *head(1280))


SHUFFLENET_V1 = [(24, 240, 4), (240, 480, 8), (480, 960, 4)]  # C in, C out, units
SHUFFLENET_GROUPS = 3


def shuffle_body(c_in: int, c_out: int, width: int, stride: int, first_groups: int) -> nn.Sequential:
    """Grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1."""
    return nn.Sequential(
        conv_bn(c_in, width, 1, groups=first_groups),
        nn.ChannelShuffle(SHUFFLENET_GROUPS),
        conv_bn(width, width, 3, stride, act=None, groups=width),
        conv_bn(width, c_out, 1, act=None, groups=SHUFFLENET_GROUPS),
    )


def shufflenet_v1() -> nn.Sequential:
    """ShuffleNet 1x with 3 groups (Zhang et al. 2017, arXiv 1707.01083)."""
    layers: list[nn.Module] = [conv_bn(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, (c_in, c_out, count) in enumerate(SHUFFLENET_V1):
        width = c_out // 4
        first_groups = 1 if stage == 0 else SHUFFLENET_GROUPS  # 24 maps are too few to group
        down = shuffle_body(c_in, c_out - c_in, width, 2, first_groups)
        layers.append(nn.Sequential(Concat([nn.AvgPool2d(3, 2, 1), down]), relu()))
        for _ in range(count - 1):
            layers.append(Residual(shuffle_body(c_out, c_out, width, 1, SHUFFLENET_GROUPS), act=relu()))
    return nn.Sequential(*layers, *head(c_out))


# C in, squeeze, expand (each of 1x1 and 3x3); None is a max-pool.
SQUEEZENET1_0 = [
    (96, 16, 64),
    (128, 16, 64),
    (128, 32, 128),
    None,
    (256, 32, 128),
    (256, 48, 192),
    (384, 48, 192),
    (384, 64, 256),
    None,
    (512, 64, 256),
]


def fire(c_in: int, squeeze: int, expand: int) -> nn.Sequential:
    """1x1 to few maps, then 1x1 and 3x3 side by side."""
    return nn.Sequential(
        conv_relu(c_in, squeeze, 1), Concat([conv_relu(squeeze, expand, 1), conv_relu(squeeze, expand, 3)])
    )


def squeezenet1_0() -> nn.Sequential:
    """Eight fire modules (Iandola et al. 2016, arXiv 1602.07360)."""

    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    body = [fire(*row) if row else pool() for row in SQUEEZENET1_0]
    classifier = [nn.Dropout(), conv_relu(512, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(conv_relu(3, 96, 7, 2, padding=0), pool(), *body, *classifier)


# Maps before each separable convolution of a block and after its last, and the stride of the block.
XCEPTION = [
    ((64, 128, 128), 2),
    ((128, 256, 256), 2),
    ((256, 728, 728), 2),
    *[((728, 728, 728, 728), 1)] * 8,
    ((728, 728, 1024), 2),
]


def separable(c_in: int, c_out: int) -> list[nn.Module]:
    """Depthwise 3x3 and 1x1 with nothing between them, then batch normalisation."""
    return [conv(c_in, c_in, 3, groups=c_in), conv(c_in, c_out, 1), nn.BatchNorm2d(c_out)]


def xception_block(maps: tuple[int, ...], stride: int, relu_first: bool) -> Residual:
    """Separable convolutions, each behind a ReLU, and a shortcut."""
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise(maps):
        layers += [nn.ReLU(), *separable(c_in, c_out)]  # not in place: the shortcut reads the block's input too
    body = nn.Sequential(*layers if relu_first else layers[1:], *([nn.MaxPool2d(3, 2, 1)] if stride == 2 else []))
    return Residual(body, conv_bn(maps[0], maps[-1], 1, 2, act=None) if stride == 2 else None)


def xception() -> nn.Sequential:
    """Separable convolutions in place of Inception modules (Chollet 2016, arXiv 1610.02357)."""
    stem = [conv_bn(3, 32, 3, 2, padding=0), conv_bn(32, 64, 3, padding=0)]
    blocks = [xception_block(maps, stride, relu_first=i > 0) for i, (maps, stride) in enumerate(XCEPTION)]
    tail = [*separable(1024, 1536), relu(), *separable(1536, 2048), relu()]
    return nn.Sequential(*stem, *blocks, *tail, *head(2048))


BUILDERS: dict[str, Callable[[], nn.Sequential]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "googlenet": googlenet,
    **{name: partial(resnet, name) for name in RESNETS},
    "densenet121": densenet121,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v1": shufflenet_v1,
    "squeezenet1_0": squeezenet1_0,
    "xception": xception,
}


def names() -> list[str]:
    """Every name that :func:`build` takes."""
    return list(BUILDERS)


def input_size(name: str) -> tuple[int, int, int]:
    """(C, H, W) of the images that the network was published for."""
    size = 299 if name == "xception" else 224
    return 3, size, size


def build(name: str) -> nn.Module:
    """The network ``name`` in training mode, float32, weights drawn from torch's default generator.

    Raises KeyError for a name that is not in :func:`names`.
    """
    model = BUILDERS[name]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model
