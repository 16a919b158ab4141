"""Every test runs with unwritten memory poisoned: fresh results and scratch memory are NaN (csrc/poison.h)."""

import os

# Triton either interprets its kernels or compiles them, for the whole of a process.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]

os.environ["CNNKERN_POISON"] = "1"
