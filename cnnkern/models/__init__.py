"""The architectures of the CNN lectures, and some later ones, on cnnkern's kernels.

    from cnnkern import models

    models.list("resnet*")
    model = models.create("resnet50", num_classes=10)
    model = models.load_torchvision("resnet50", torchvision_model.state_dict())

Each is a table in a file of its own, published definitions with published parameter counts. Where torchvision has an
architecture, the keys of the state_dict are torchvision's.
"""

from cnnkern.models import (  # noqa: F401  (each registers what it defines)
    alexnet,
    convnext,
    densenet,
    efficientnet,
    fractalnet,
    googlenet,
    inception_resnet,
    inception_v2,
    inception_v3,
    inception_v4,
    lenet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    nin,
    preact_resnet,
    regnet,
    repvgg,
    resnet,
    resnet_cifar,
    shufflenet_v1,
    shufflenet_v2,
    squeezenet,
    vgg,
    xception,
)
from cnnkern.models._errors import Error
from cnnkern.models._network import Network, Outputs
from cnnkern.models._registry import Entry, create, entry, load_torchvision, register
from cnnkern.models._registry import names as list  # noqa: A004
from cnnkern.models._table import Cost, cost, table

__all__ = [
    "Cost",
    "Entry",
    "Error",
    "Network",
    "Outputs",
    "cost",
    "create",
    "entry",
    "list",
    "load_torchvision",
    "register",
    "table",
]
