// What this processor can do, and which of the compiled instruction sets are used on it.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

namespace cnnkern::cpu {

// The features that the instruction sets below need, each with whether processor and operating system have it.
std::vector<std::pair<std::string_view, bool>> features();

// Names of the instruction sets that were compiled, best first, "generic" last.
std::vector<std::string_view> compiled_isas();

// Those of them that can be used here, best first. The environment variable CNNKERN_ISA, read once, names the best one
// to use. Throws std::runtime_error when it names one that is unknown or cannot be used.
const std::vector<std::string_view>& usable_isas();

}  // namespace cnnkern::cpu
