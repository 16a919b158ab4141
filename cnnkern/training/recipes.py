"""The lectures' recipes and their papers', by name.

Those of the papers are for colour images of hundreds of pixels and days of training; those of the digits reach their
best in minutes on a CPU. Each optimizer has one on the digits, to compare them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import MappingProxyType

from torch.optim import LBFGS, SGD, Adagrad, Adam, RMSprop

from cnnkern.training import schedules
from cnnkern.training.augmentation import (
    colour_jitter,
    horizontal_flip,
    pca_colour,
    random_affine,
    random_crop,
    random_resized_crop,
)
from cnnkern.training.recipe import MOMENTUM, Recipe

# For networks as unlike as LeNet-5 and ResNet-20, which want rates of SGD that are far apart.
DIGITS = Recipe(
    epochs=30,
    batch=32,
    lr=5e-3,
    optimizer=Adam,
    weight_decay=5e-4,
    schedule=schedules.cosine,
    augment=(partial(random_affine, spread=0.06),),
)
SGD_DIGITS = replace(DIGITS, lr=0.02, optimizer=partial(SGD, momentum=0.9, nesterov=True))

# Krizhevsky, Sutskever and Hinton 2012; dropout of 0.5 is in the model. 227 of 256 pixels, ten crops in the test.
ALEXNET = Recipe(
    epochs=90,
    batch=128,
    lr=1e-2,
    weight_decay=5e-4,
    schedule=schedules.plateau,
    mean_image=True,
    resize=256 / 227,
    crop=random_crop,
    augment=(horizontal_flip, pca_colour),
    test_scales=(256 / 227,),
)

# He et al. 2015, arXiv 1512.03385: section 3.4, and 4.2 for images of 32x32.
RESNET = Recipe(
    epochs=90,
    batch=256,
    lr=0.1,
    weight_decay=1e-4,
    schedule=schedules.step,
    resize=256 / 224,
    crop=partial(random_resized_crop, shares=(224 / 480, 224 / 256), aspect=1.0),
    augment=(horizontal_flip, pca_colour),
    test_scales=(1.0, 256 / 224, 384 / 224, 480 / 224, 640 / 224),
)
RESNET_CIFAR = Recipe(
    epochs=164,
    batch=128,
    lr=0.1,
    weight_decay=1e-4,
    schedule=partial(schedules.step, at=(0.5, 0.75)),
    crop=partial(random_crop, padding=4),
    augment=(horizontal_flip,),
)

# Szegedy et al. 2015, arXiv 1512.00567, section 8: 0.045 times 0.94 every second epoch, averaged weights in the test.
INCEPTION = Recipe(
    epochs=100,
    batch=32,
    lr=0.045,
    optimizer=partial(RMSprop, alpha=0.9, eps=1.0, momentum=0.9),
    schedule=partial(schedules.exponential, last=0.94**50),
    label_smoothing=0.1,
    auxiliary_weight=0.4,
    resize=8 / 7,
    crop=random_resized_crop,
    augment=(horizontal_flip, colour_jitter),
    polyak=0.9999,
)

_RECIPES = {
    "digits": DIGITS,
    "alexnet": ALEXNET,
    "resnet": RESNET,
    "resnet-cifar": RESNET_CIFAR,
    "inception": INCEPTION,
    # Howard et al. 2017, arXiv 1704.04861: as Inception's, with less regularisation for small networks.
    "mobilenet": replace(INCEPTION, label_smoothing=0.0, augment=(horizontal_flip,)),
    # Huang et al. 2017, arXiv 1704.00109: one run, three minima, their ensemble. ResNet-20 on digits of 16x16 reaches
    # 99.4, 98.9 and 98.6% by seeds 0, 1 and 2, in 53 s of one core.
    "snapshots": replace(DIGITS, cycles=3),
    # Polyak and Juditsky 1992, as an exponential average: 0.995 of the old and 0.005 of the new weights at each step.
    "polyak": replace(SGD_DIGITS, schedule=schedules.constant, polyak=0.995),
    "elastic-net": replace(SGD_DIGITS, l1=1e-5),
    "label-smoothing": replace(DIGITS, label_smoothing=0.1),
    # Little data of one's own: a classifier on frozen features; more of it: the features follow at a tenth of the rate.
    "transfer": replace(RESNET, epochs=15, batch=32, lr=1e-2, schedule=schedules.cosine, backbone_rate=0.0),
    "fine-tune": replace(RESNET, epochs=15, batch=32, lr=1e-2, schedule=schedules.cosine, backbone_rate=0.1),
    "sgd": replace(SGD_DIGITS, optimizer=SGD, lr=0.1),
    "momentum": replace(SGD_DIGITS, optimizer=MOMENTUM),
    "momentum-0.99": replace(SGD_DIGITS, optimizer=partial(SGD, momentum=0.99), lr=0.005),
    "nesterov": SGD_DIGITS,
    "adagrad": replace(DIGITS, optimizer=Adagrad, lr=0.02),
    "rmsprop": replace(DIGITS, optimizer=RMSprop, lr=1e-3),
    "adam": DIGITS,
    # A step of a second-order method wants the exact gradient: all of the images, and none of them changed at random.
    "lbfgs": Recipe(epochs=15, batch=None, lr=1.0, optimizer=partial(LBFGS, line_search_fn="strong_wolfe")),
}

RECIPES = MappingProxyType(dict(sorted(_RECIPES.items())))
