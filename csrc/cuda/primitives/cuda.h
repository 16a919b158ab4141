// The CUDA language itself. Kernel sources take it, and everything else in this directory, by <primitives/...>, so that
// the host build can put a directory of its own in front (tests/simt), where the same functions run on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
