// Every CPU kernel, in the order in which dispatch considers them.
#pragma once

#include <string_view>
#include <vector>

#include "../kernel.h"
#include "tools.h"

namespace cnnkern::cpu {

// All kernels of the instruction sets that can be used here. Those of one direction and dtype stand in dispatch order:
// the best instruction set first and in it the most special family first; the reference last.
const KernelList& kernels();

// Those that compute this direction and dtype, in the same order.
const std::vector<const Kernel*>& kernels_for(Direction direction, DType dtype);

// The plain loops of reference.cpp for this direction and dtype.
const Kernel& reference_kernel(Direction direction, DType dtype);

// Throws std::invalid_argument when there is no kernel of this name.
const Kernel& kernel_named(std::string_view name);

// The functions of the best instruction set that can be used here, and its name.
const Tools& tools();
std::string_view tools_isa();

}  // namespace cnnkern::cpu
