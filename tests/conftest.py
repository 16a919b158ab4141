"""Every test runs with unwritten memory poisoned, fresh results and scratch memory being NaN (csrc/poison.h).

With the kernels that dispatch would choose on an untuned machine: no test reads or writes the user's choices. And with
the build tools of the interpreter's environment, before those of the machine.
"""

import os
import sys
from pathlib import Path

import torch

# Triton either interprets its kernels or compiles them, for the whole of a process; and some machines have a GPU.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
collect_ignore += [] if torch.cuda.is_available() else ["gpu"]

os.environ["CNNKERN_POISON"] = "1"
os.environ["CNNKERN_TUNED"] = "0"
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
