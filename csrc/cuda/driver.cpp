// Runs kernels on problems and compares what they write with the formula, without Python and without torch:
//
//   driver [--list] [--ask] [--kernel NAME] [--real] [--offset N] [--narrow] [--tf32] [--capability N] [--seed N]
//          [--time] [PROBLEM...]
//
//   --list        prints every kernel's name, and is all
//   --ask         prints what kernels answer, and runs none
//   --kernel      only kernels in whose name this occurs
//   --real        random numbers, and a bound on rounding; else small integers, whose sums are exact, and equality
//   --offset      elements between an aligned address and each operand
//   --narrow      scales and shifts have the tensors' type
//   --tf32        float may be multiplied as TF32
//   --capability  of the GPU; this one's if not given
//   --seed        of the numbers and, in the host build, of the order in which threads run
//   --time        the median time of a call as well
//
// Problems are strings as csrc/conv_problem.h has them. None: a line each from standard input, where the name of a
// kernel, or a part of it, may follow. Every kernel of a problem's direction and dtype that does not refuse is run.
// What it is not to write is checked to be as it was: operands, gaps between pixels, and a zone around each tensor. The
// exit status is 1 if anything was wrong.
#include <primitives/grid.h>

#include <cstdio>
#include <iostream>
#include <stdexcept>

#include "driver/trial.h"
#include "kernel_list.h"

#if defined(CNNKERN_SIMT)
#include "simt.h"
#endif

namespace cnnkern::cuda {
namespace {

struct Options : TrialOptions {
  bool list = false, ask = false;
  std::string kernel;
  std::vector<std::string> problems;
};

bool serves(const Kernel& kernel, const ConvProblem& p) {
  const std::string part = "_" + std::string(kDirectionNames[static_cast<int>(p.direction)]) + "_" +
                           std::string(kDTypeNames[static_cast<int>(p.dtype)]) + "_nhwc_";
  return kernel.name.find(part) != std::string::npos;
}

double bytes(const ConvProblem& p) {
  const int64_t elements = p.n * p.h * p.w * p.c + p.n * p.p() * p.q() * p.k * (p.epilogue.residual ? 2 : 1) +
                           p.k * p.r * p.s * p.c_per_group();
  return static_cast<double>(elements * kDTypeSizes[static_cast<int>(p.dtype)]);
}

void print_speed(const ConvProblem& p, double seconds) {
  std::printf(" %.2f us, %.0f GB/s, %.2f TFLOP/s", seconds * 1e6, bytes(p) / seconds / 1e9, p.flops() / seconds / 1e12);
}

#if defined(CNNKERN_SIMT)
// What runs here runs with all the shared memory that it asks for: whether a GPU of another capability, for which the
// kernel does not refuse, has that much.
std::string beyond_shared_memory(const Kernel& kernel, const ConvProblem& p, Flags flags) {
  for (const int capability : {80, 86, 90}) {
    flags.capability = capability;
    if (kernel.why_not(p, flags).empty() && static_cast<int>(simt::most_shared_bytes) > most_shared_bytes(capability))
      return std::to_string(simt::most_shared_bytes) + " bytes of shared memory are more than " +
             std::to_string(capability) + " has";
  }
  return "";
}
#endif

// Returns whether all was right.
bool run_problem(const std::string& problem, const std::string& part_of_name, const Options& options) {
  const ConvProblem p = ConvProblem::parse(problem);
  Flags flags = options.flags;
  flags.unaligned = options.offset * kDTypeSizes[static_cast<int>(p.dtype)] % 16 != 0;
  std::unique_ptr<Trial> trial;
  bool right = true;
  for (const Kernel& kernel : kernels()) {
    if (kernel.name.find(part_of_name) == std::string::npos || !serves(kernel, p)) continue;
    std::printf("%s %s ", kernel.name.c_str(), problem.c_str());
    std::fflush(stdout);  // a sanitizer may end the program
    if (const std::string why = kernel.why_not(p, flags); !why.empty() || options.ask) {
      std::printf("%s%s\n", why.empty() ? "accepted" : "refused: ", why.c_str());
      continue;
    }
    if (!trial) trial = std::make_unique<Trial>(p, options);
    std::string wrong;
    try {
#if defined(CNNKERN_SIMT)
      simt::most_shared_bytes = 0;
      wrong = trial->check(kernel);
      if (wrong.empty()) wrong = beyond_shared_memory(kernel, p, flags);
#else
      wrong = trial->check(kernel);
#endif
    } catch (const std::exception& error) {
      wrong = std::string("error: ") + error.what();
    }
    std::printf("%s%s", wrong.empty() ? "ok" : "WRONG ", wrong.c_str());
    if (options.time && wrong.empty()) print_speed(p, trial->seconds());
    std::printf("\n");
    right = right && wrong.empty();
  }
  return right;
}

Options parse(int argc, char** argv) {
  Options o;
  o.flags.capability = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&] {
      if (++i == argc) throw std::invalid_argument(argument + " needs a value");
      return std::string(argv[i]);
    };
    if (argument == "--list") o.list = true;
    else if (argument == "--ask") o.ask = true;
    else if (argument == "--kernel") o.kernel = value();
    else if (argument == "--real") o.real = true;
    else if (argument == "--narrow") o.narrow = true;
    else if (argument == "--time") o.time = true;
    else if (argument == "--tf32") o.flags.tf32 = true;
    else if (argument == "--offset") o.offset = std::stoll(value());
    else if (argument == "--seed") o.seed = std::stoull(value());
    else if (argument == "--capability") o.flags.capability = std::stoi(value());
    else if (argument.starts_with("--")) throw std::invalid_argument("unknown option " + argument);
    else o.problems.push_back(argument);
  }
  if (o.time && !kOnGpu) throw std::invalid_argument("--time needs a GPU");
  if (!o.flags.capability && !o.list) o.flags.capability = capability_of_device();
  return o;
}

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  if (options.list) {
    for (const Kernel& kernel : kernels()) std::printf("%s\n", kernel.name.c_str());
    return 0;
  }
#if defined(CNNKERN_SIMT)
  simt::set_seed(options.seed);
#endif
  bool right = true;
  for (const std::string& problem : options.problems) right &= run_problem(problem, options.kernel, options);
  if (options.problems.empty()) {
    for (std::string line; std::getline(std::cin, line);) {
      const size_t blank = std::min(line.find(' '), line.size());
      const std::string kernel = line.substr(std::min(blank + 1, line.size()));
      if (blank) right &= run_problem(line.substr(0, blank), kernel.empty() ? options.kernel : kernel, options);
    }
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace cnnkern::cuda

int main(int argc, char** argv) {
  try {
    return cnnkern::cuda::main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "driver: %s\n", error.what());
    return 2;
  }
}
