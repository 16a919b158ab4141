"""Every test runs with unwritten memory poisoned: fresh results and scratch memory are NaN (csrc/poison.h)."""

import os

import torch

# Triton either interprets its kernels or compiles them, for the whole of a process; and some machines have a GPU.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
collect_ignore += [] if torch.cuda.is_available() else ["gpu"]

os.environ["CNNKERN_POISON"] = "1"
