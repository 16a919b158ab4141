"""Every test runs with unwritten memory poisoned: fresh results and scratch memory are NaN (csrc/poison.h)."""

import os

os.environ["CNNKERN_POISON"] = "1"
