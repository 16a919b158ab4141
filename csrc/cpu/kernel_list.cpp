#include "kernel_list.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "features.h"

#define CNNKERN_DECLARE_GEMM_FAMILIES                 \
  void append_direct(KernelList& list);               \
  void append_direct_dgrad(KernelList& list);         \
  void append_direct_few_maps(KernelList& list);      \
  void append_im2col_few_pixels(KernelList& list);    \
  void append_pointwise_few_pixels(KernelList& list); \
  void append_pointwise(KernelList& list);            \
  void append_implicit_gemm(KernelList& list);        \
  void append_im2col(KernelList& list);

#define CNNKERN_DECLARE_ALL                     \
  CNNKERN_DECLARE_GEMM_FAMILIES                 \
  void append_depthwise(KernelList& list);      \
  void append_grouped(KernelList& list);        \
  void append_winograd(KernelList& list);       \
  void append_winograd_wgrad(KernelList& list); \
  const Tools& tools();

namespace cnnkern::cpu {

namespace generic {
CNNKERN_DECLARE_ALL
void append_reference(KernelList& list);
}  // namespace generic

#if defined(__x86_64__)
namespace avx2 {
CNNKERN_DECLARE_ALL
}
namespace avx512 {
CNNKERN_DECLARE_ALL
}
namespace avx512_bf16 {
CNNKERN_DECLARE_GEMM_FAMILIES
}
#endif

namespace {

using Append = void (*)(KernelList&);

// What one instruction set brings: its families in dispatch order, and its table of tools (null: the next one's). A
// family may stand in a better set's entry too, for the place in the order that it has there.
struct Compiled {
  std::string_view isa;
  std::vector<Append> families;
  const Tools& (*tools)();
};

#define CNNKERN_GEMM_FAMILIES(isa)                                                                                  \
  isa::append_direct_few_maps, isa::append_im2col_few_pixels, isa::append_pointwise_few_pixels, isa::append_direct, \
      isa::append_direct_dgrad, isa::append_pointwise, isa::append_implicit_gemm, isa::append_im2col
#define CNNKERN_ALL_FAMILIES(isa)                                                                 \
  {#isa,                                                                                          \
   {isa::append_depthwise, isa::append_grouped, isa::append_winograd, isa::append_winograd_wgrad, \
    CNNKERN_GEMM_FAMILIES(isa)},                                                                  \
   isa::tools}

const std::vector<Compiled>& compiled() {
  static const std::vector<Compiled> table = {
#if defined(__x86_64__)
      {"avx512_bf16",
       {avx512::append_winograd, avx512::append_winograd_wgrad, CNNKERN_GEMM_FAMILIES(avx512_bf16)},
       nullptr},
      CNNKERN_ALL_FAMILIES(avx512),
      CNNKERN_ALL_FAMILIES(avx2),
#endif
      CNNKERN_ALL_FAMILIES(generic),
  };
  return table;
}

// The entries of compiled() that can be used here, best first.
std::vector<const Compiled*> usable() {
  std::vector<const Compiled*> found;
  for (const std::string_view isa : usable_isas()) {
    for (const Compiled& entry : compiled()) {
      if (entry.isa == isa) found.push_back(&entry);
    }
  }
  return found;
}

const Compiled& with_tools() {
  const std::vector<const Compiled*> entries = usable();
  return **std::find_if(entries.begin(), entries.end(), [](const Compiled* entry) { return entry->tools; });
}

constexpr int kDirections = std::size(kDirectionNames), kDTypes = std::size(kDTypeNames);
using ByProblem = std::array<std::array<std::vector<const Kernel*>, kDTypes>, kDirections>;

ByProblem group_by_problem() {
  ByProblem groups;
  for (const Kernel& kernel : kernels()) {
    for (int direction = 0; direction < kDirections; ++direction) {
      for (int dtype = 0; dtype < kDTypes; ++dtype) {
        const std::string part =
            "_" + std::string(kDirectionNames[direction]) + "_" + std::string(kDTypeNames[dtype]) + "_nhwc_";
        if (kernel.name.find(part) != std::string::npos) groups[direction][dtype].push_back(&kernel);
      }
    }
  }
  return groups;
}

}  // namespace

const KernelList& kernels() {
  static const KernelList list = [] {
    KernelList all;
    std::vector<Append> appended;
    for (const Compiled* entry : usable()) {
      for (const Append append : entry->families) {
        if (std::find(appended.begin(), appended.end(), append) != appended.end()) continue;
        append(all);
        appended.push_back(append);
      }
    }
    generic::append_reference(all);
    return all;
  }();
  return list;
}

const std::vector<const Kernel*>& kernels_for(Direction direction, DType dtype) {
  static const ByProblem groups = group_by_problem();
  return groups[static_cast<int>(direction)][static_cast<int>(dtype)];
}

const Kernel& reference_kernel(Direction direction, DType dtype) { return *kernels_for(direction, dtype).back(); }

const Kernel& kernel_named(std::string_view name) {
  static const std::unordered_map<std::string_view, const Kernel*> by_name = [] {
    std::unordered_map<std::string_view, const Kernel*> index;
    for (const Kernel& kernel : kernels()) index.emplace(kernel.name, &kernel);
    return index;
  }();
  const auto found = by_name.find(name);
  if (found == by_name.end()) throw std::invalid_argument("no CPU kernel is named '" + std::string(name) + "'");
  return *found->second;
}

const Tools& tools() {
  static const Tools& best = with_tools().tools();
  return best;
}

std::string_view tools_isa() { return with_tools().isa; }

}  // namespace cnnkern::cpu
