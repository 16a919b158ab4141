#include "memo.h"

#include <algorithm>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <unordered_map>

#include "kernel_list.h"
#include "threads.h"

namespace cnnkern::cpu {
namespace {

struct Key {
  ConvProblem problem;
  int64_t flags, threads;
  bool operator==(const Key&) const = default;
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    return ConvProblemHash()(key.problem) ^ static_cast<size_t>(key.flags * 0x9e3779b97f4a7c15 + key.threads);
  }
};

struct Memo {
  std::shared_mutex mutex;
  std::unordered_map<Key, const Kernel*, KeyHash> kernels;
  Chooser chooser;
};

// Images of ever new sizes must not fill the memory.
constexpr size_t kMostKept = 1 << 16;

// Never destroyed: calls may still come while the process ends.
Memo& memo() {
  static Memo& instance = *new Memo;
  return instance;
}

const Kernel& first_willing(const ConvProblem& problem) {
  const Kernel* able = nullptr;
  for (const Kernel* kernel : kernels_for(problem.direction, problem.dtype)) {
    if (!kernel->why_not(problem).empty()) continue;
    if (!kernel->rather_not || kernel->rather_not(problem).empty()) return *kernel;
    if (!able) able = kernel;
  }
  return *able;  // the reference is always able
}

const Kernel& choose(const ConvProblem& problem, int64_t flags) {
  Chooser chooser;
  {
    const std::shared_lock lock(memo().mutex);
    chooser = memo().chooser;
  }
  if (!chooser) return first_willing(staged(problem));
  const Kernel& kernel = kernel_named(chooser(problem.to_string(), flags));
  require(kernel, problem);
  return kernel;
}

}  // namespace

const Kernel& chosen_kernel(const ConvProblem& problem, int64_t flags) {
  const Key key{problem, flags, thread_count()};
  {
    const std::shared_lock lock(memo().mutex);
    const auto found = memo().kernels.find(key);
    if (found != memo().kernels.end()) return *found->second;
  }
  const Kernel& kernel = choose(problem, flags);
  const std::unique_lock lock(memo().mutex);
  if (memo().kernels.size() >= kMostKept) memo().kernels.clear();
  memo().kernels.emplace(key, &kernel);
  return kernel;
}

ConvProblem staged(const ConvProblem& problem) {
  ConvProblem copy = problem;
  copy.x_layout = copy.y_layout = Layout::nhwc;
  copy.w_layout = WeightLayout::krsc;
  if (copy.prologue != Prologue{}) copy.x_pixel_stride = 0;
  copy.prologue = {};
  return copy;
}

std::string why_not(const Kernel& kernel, const ConvProblem& problem) {
  const std::vector<const Kernel*>& listed = kernels_for(problem.direction, problem.dtype);
  const bool fits = std::find(listed.begin(), listed.end(), &kernel) != listed.end();
  return fits ? kernel.why_not(staged(problem)) : "it is for another direction or dtype";
}

void require(const Kernel& kernel, const ConvProblem& problem) {
  const std::string reason = why_not(kernel, problem);
  if (!reason.empty()) throw std::runtime_error(kernel.name + " cannot compute " + problem.to_string() + ": " + reason);
}

void set_chooser(Chooser chooser) {
  const std::unique_lock lock(memo().mutex);
  memo().chooser = std::move(chooser);
  memo().kernels.clear();
}

std::vector<std::pair<std::string, std::string>> memo_entries() {
  const std::shared_lock lock(memo().mutex);
  std::vector<std::pair<std::string, std::string>> entries;
  for (const auto& [key, kernel] : memo().kernels) {
    entries.emplace_back(
        key.problem.to_string() + " flags=" + std::to_string(key.flags) + " threads=" + std::to_string(key.threads),
        kernel->name);
  }
  return entries;
}

void clear_memo() {
  const std::unique_lock lock(memo().mutex);
  memo().kernels.clear();
}

}  // namespace cnnkern::cpu
