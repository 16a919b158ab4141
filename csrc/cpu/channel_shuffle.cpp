// Channel shuffle: y[o, j, g, i] = x[o, g, j, i], the transpose of a groups x per_group matrix of maps (Zhang et al.,
// "ShuffleNet", arXiv 1707.01083).
//
// NHWC moves single elements inside each pixel (inner = 1), NCHW moves whole planes (inner = h * w). No arithmetic, so
// elements are moved by their size. A thread owns a range of `outer`. Bound: memory bandwidth; for NHWC the strided
// reads of one pixel stay in L1.
#include <algorithm>
#include <cstring>

#include "threads.h"
#include "tool_functions.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

template <class E>
void shuffle_elements(const E* x, E* y, int64_t pixels, int64_t groups, int64_t per_group) {
  const int64_t channels = groups * per_group;
  for (int64_t pixel = 0; pixel < pixels; ++pixel, x += channels, y += channels) {
    if (groups == 2) {  // interleaving two halves is what the compiler turns into permutes
      for (int64_t j = 0; j < per_group; ++j) {
        y[2 * j] = x[j];
        y[2 * j + 1] = x[per_group + j];
      }
      continue;
    }
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t j = 0; j < per_group; ++j) y[j * groups + g] = x[g * per_group + j];
  }
}

void shuffle_blocks(const char* x, char* y, int64_t groups, int64_t per_group, int64_t bytes) {
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t j = 0; j < per_group; ++j)
      std::memcpy(y + (j * groups + g) * bytes, x + (g * per_group + j) * bytes, static_cast<size_t>(bytes));
}

}  // namespace

void channel_shuffle(const void* x, void* y, int64_t outer, int64_t channels, int64_t groups, int64_t inner,
                     size_t element_size) {
  const int64_t per_group = channels / groups;
  const int64_t block = inner * static_cast<int64_t>(element_size), bytes = channels * block;
  parallel_for(outer, std::max<int64_t>(1, 32768 / std::max<int64_t>(bytes, 1)), [&](int64_t begin, int64_t end) {
    const char* from = static_cast<const char*>(x) + begin * bytes;
    char* to = static_cast<char*>(y) + begin * bytes;
    if (block == 2) {
      shuffle_elements(reinterpret_cast<const int16_t*>(from), reinterpret_cast<int16_t*>(to), end - begin, groups,
                       per_group);
    } else if (block == 4) {
      shuffle_elements(reinterpret_cast<const int32_t*>(from), reinterpret_cast<int32_t*>(to), end - begin, groups,
                       per_group);
    } else if (block == 8) {
      shuffle_elements(reinterpret_cast<const int64_t*>(from), reinterpret_cast<int64_t*>(to), end - begin, groups,
                       per_group);
    } else {
      for (int64_t o = begin; o < end; ++o, from += bytes, to += bytes)
        shuffle_blocks(from, to, groups, per_group, block);
    }
  });
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
