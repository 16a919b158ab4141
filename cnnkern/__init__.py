"""Hand-written convolution kernels for PyTorch: drop-in modules and functions, forward and backward."""

from cnnkern import functional, nn
from cnnkern import gpu as _gpu  # noqa: F401  (registers the operators for CUDA tensors)
from cnnkern import gpu_tools as _gpu_tools  # noqa: F401  (registers the others)
from cnnkern.convert import convert, revert
from cnnkern.dispatch import use
from cnnkern.explain import explain
from cnnkern.info import info
from cnnkern.nn import ChannelShuffle, Conv2d, ConvBNReLU2d, DepthwiseSeparableConv2d, LazyConv2d
from cnnkern.problem import ConvProblem, Epilogue
from cnnkern.summary import summary

__version__ = "0.1.0"

__all__ = [
    "ChannelShuffle",
    "Conv2d",
    "ConvBNReLU2d",
    "ConvProblem",
    "DepthwiseSeparableConv2d",
    "Epilogue",
    "LazyConv2d",
    "__version__",
    "convert",
    "explain",
    "functional",
    "info",
    "nn",
    "revert",
    "summary",
    "use",
]
