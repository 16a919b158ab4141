#include "features.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace cnnkern::cpu {
namespace {

struct InstructionSet {
  std::string_view name;
  std::vector<std::string_view> needs;
};

#if defined(__x86_64__)

enum Register { ebx, ecx, edx, eax };
// Bits of XCR0: the register state that the operating system saves. A feature is of use only if its registers are.
constexpr uint64_t kYmm = 0x06, kZmm = 0xe6;

// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID.
struct Feature {
  std::string_view name;
  uint32_t leaf, subleaf;
  Register where;
  int bit;
  uint64_t state;
};
constexpr Feature kFeatures[] = {
    {"avx2", 7, 0, ebx, 5, kYmm},        {"fma", 1, 0, ecx, 12, kYmm},      {"f16c", 1, 0, ecx, 29, kYmm},
    {"bmi2", 7, 0, ebx, 8, 0},           {"avx512f", 7, 0, ebx, 16, kZmm},  {"avx512dq", 7, 0, ebx, 17, kZmm},
    {"avx512cd", 7, 0, ebx, 28, kZmm},   {"avx512bw", 7, 0, ebx, 30, kZmm}, {"avx512vl", 7, 0, ebx, 31, kZmm},
    {"avx512_bf16", 7, 1, eax, 5, kZmm},
};

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    const std::vector<std::string_view> avx2 = {"avx2", "fma", "f16c"};
    std::vector<std::string_view> avx512 = avx2;
    for (const auto name : {"bmi2", "avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"}) avx512.push_back(name);
    std::vector<std::string_view> avx512_bf16 = avx512;
    avx512_bf16.push_back("avx512_bf16");
    return std::vector<InstructionSet>{
        {"avx512_bf16", avx512_bf16}, {"avx512", avx512}, {"avx2", avx2}, {"generic", {}}};
  }();
  return sets;
}

uint64_t saved_state() {
  uint32_t registers[4] = {};
  constexpr uint32_t kOsxsave = 1u << 27;
  if (!__get_cpuid(1, &registers[eax], &registers[ebx], &registers[ecx], &registers[edx])) return 0;
  if (!(registers[ecx] & kOsxsave)) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low | static_cast<uint64_t>(high) << 32;
}

bool has(const Feature& feature, uint64_t state) {
  uint32_t registers[4] = {};
  if (!__get_cpuid_count(feature.leaf, feature.subleaf, &registers[eax], &registers[ebx], &registers[ecx],
                         &registers[edx])) {
    return false;
  }
  return (registers[feature.where] >> feature.bit & 1) && (state & feature.state) == feature.state;
}

#else

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {{"generic", {}}};
  return sets;
}

#endif

// Space and the name of each feature that the set needs and this machine lacks.
std::string lacking(const InstructionSet& set) {
  std::string missing;
  for (const std::string_view need : set.needs) {
    for (const auto& [name, present] : features()) {
      if (name == need && !present) missing += " " + std::string(name);
    }
  }
  return missing;
}

std::vector<std::string_view> find_usable() {
  const char* forced = std::getenv("CNNKERN_ISA");
  const std::string best = forced ? forced : "";
  std::vector<std::string_view> usable;
  std::string known;
  bool reached = best.empty();
  for (const InstructionSet& set : instruction_sets()) {
    known += " " + std::string(set.name);
    const std::string missing = lacking(set);
    if (set.name == best) {
      reached = true;
      if (!missing.empty()) throw std::runtime_error("CNNKERN_ISA=" + best + ": this machine lacks" + missing);
    }
    if (reached && missing.empty()) usable.push_back(set.name);
  }
  if (!reached) throw std::runtime_error("CNNKERN_ISA=" + best + ": unknown; one of" + known);
  return usable;
}

}  // namespace

std::vector<std::pair<std::string_view, bool>> features() {
  std::vector<std::pair<std::string_view, bool>> found;
#if defined(__x86_64__)
  const uint64_t state = saved_state();
  for (const Feature& feature : kFeatures) found.emplace_back(feature.name, has(feature, state));
#endif
  return found;
}

std::vector<std::string_view> compiled_isas() {
  std::vector<std::string_view> names;
  for (const InstructionSet& set : instruction_sets()) names.push_back(set.name);
  return names;
}

const std::vector<std::string_view>& usable_isas() {
  static const std::vector<std::string_view> usable = find_usable();
  return usable;
}

}  // namespace cnnkern::cpu
