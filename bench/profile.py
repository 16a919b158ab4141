"""One call of each GPU backend's choice on a layer of each class, for a profiler: `make gpu STAGE=profile`."""

from __future__ import annotations

import torch

from cnnkern import dispatch
from cnnkern.backends import BACKENDS, OWN_BACKENDS
from cnnkern.bench.operands import draw, own_call
from cnnkern.problem import DIRECTIONS, ConvProblem

LAYERS = (
    "n128c128h28w28-k128r3s3-p1",
    "n128c256h56w56-k64r1s1",
    "n64c3h224w224-k64r7s7-u2-p3",
    "n128c256h28w28-k256r3s3-p1-g32",
    "n128c144h56w56-k144r3s3-p1-g144",
)


def main() -> None:
    """Runs them, each after a call that is not profiled."""
    own = [backend for backend in BACKENDS if backend.name in OWN_BACKENDS["cuda"]]
    present = [backend.name for backend in own if not backend.why_missing()]
    with torch.device("cuda"), torch.inference_mode():
        for problem in (ConvProblem.parse(f"{direction}-bf16-{layer}") for layer in LAYERS for direction in DIRECTIONS):
            operands = draw(problem)
            for backend in present:
                kernel = dispatch.choose(problem, 0, backend, "cuda")
                call = own_call(problem, operands, kernel)
                call()
                torch.cuda.synchronize()
                with torch.cuda.profiler.profile():
                    call()
                    torch.cuda.synchronize()
                print(problem, kernel, flush=True)


if __name__ == "__main__":
    main()
