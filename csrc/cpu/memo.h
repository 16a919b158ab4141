// The memo: which kernel runs a problem, decided once per problem, numeric flags and number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../kernel.h"

namespace cnnkern::cpu {

// Bits of an op's `flags` argument.
constexpr int64_t kStrict = 1;         // only kernels with direct convolution's numerics
constexpr int64_t kDeterministic = 2;  // the same bits from every run

// The kernel to run: the memo's, or on a miss the chooser's, which is then kept.
const Kernel& chosen_kernel(const ConvProblem& problem, int64_t flags);

// The problem as kernels are asked about it: x, w and y copied to NHWC where they are not, x through its prologue.
ConvProblem staged(const ConvProblem& problem);

// Empty, or why this kernel cannot compute the problem.
std::string why_not(const Kernel& kernel, const ConvProblem& problem);

// Throws std::runtime_error that says why this kernel cannot compute the problem, if it cannot.
void require(const Kernel& kernel, const ConvProblem& problem);

// Returns a kernel's name. Called on a miss, from any thread, with no lock held. Until one is set the first kernel in
// dispatch order that has nothing against the problem is taken.
using Chooser = std::function<std::string(const std::string& problem, int64_t flags)>;
void set_chooser(Chooser chooser);

// "<problem> flags=<flags> threads=<threads>" and the kernel's name, in no order.
std::vector<std::pair<std::string, std::string>> memo_entries();
void clear_memo();

}  // namespace cnnkern::cpu
