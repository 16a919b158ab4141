// Channel shuffle: y[pixel][j * G + g] = x[pixel][g * J + j] for G groups of J maps, the transpose of a G x J matrix of
// maps (Zhang et al., "ShuffleNet", arXiv 1707.01083).
//
// x, y: NHWC with pixel strides. There is no arithmetic: elements are moved by their size. For 2, 3, 4 and 8 groups a
// thread reads a vector of neighbouring maps of each group and writes as many vectors, the transposition being a renaming
// of its registers; else it moves one element.
//
// Bound: x and y once. ShuffleNetV1 (3 groups) after its first stage, 240 maps of 28x28 pixels at N = 256 in bf16, moves
// 193 MB: 45 us at 4.3 TB/s.
#include <primitives/launcher.h>
#include <primitives/numeric.h>

#include "pixel_tiling.h"
#include "tools.h"

namespace cnnkern::cuda {
namespace {

template <class E> struct Params {
  const E* x;
  E* y;
  int64_t x_pixel_stride, y_pixel_stride;
  PixelTiling tiling;
  Divider groups;  // where their number is not a constant
  int per_group;
};

template <class E, int kGroups, int kVector>
__global__ void __launch_bounds__(kPixelThreads) shuffle_vectors(const Params<E> o) {
  int pixel, block;
  if (!o.tiling.place(pixel, block)) return;
  const int j = block * kVector;
  const E* const from = o.x + pixel * o.x_pixel_stride + j;
  Vector<E, kVector> read[kGroups];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) read[g] = load_vector<kVector>(from + int64_t{g} * o.per_group);
  E* const to = o.y + pixel * o.y_pixel_stride + int64_t{j} * kGroups;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    Vector<E, kVector> written;
#pragma unroll
    for (int v = 0; v < kVector; ++v) written[v] = read[(i * kVector + v) % kGroups][(i * kVector + v) / kGroups];
    store_vector(to + i * kVector, written);
  }
}

template <class E> __global__ void __launch_bounds__(kPixelThreads) shuffle_elements(const Params<E> o) {
  int pixel, map;
  if (!o.tiling.place(pixel, map)) return;
  int j = map;
  const int g = o.groups.split(j);
  o.y[pixel * o.y_pixel_stride + map] = o.x[pixel * o.x_pixel_stride + int64_t{g} * o.per_group + j];
}

template <class E> using ShuffleKernel = void (*)(Params<E>);

template <class E, int kVector> ShuffleKernel<E> with_groups(int64_t groups) {
  switch (groups) {
    case 2: return shuffle_vectors<E, 2, kVector>;
    case 3: return shuffle_vectors<E, 3, kVector>;
    case 4: return shuffle_vectors<E, 4, kVector>;
    case 8: return shuffle_vectors<E, 8, kVector>;
    default: return nullptr;
  }
}

// Whether all that is read and written in vectors of `elements` lies at multiples of their size.
template <class E> bool in_vectors(const Shuffle& s, int64_t elements) {
  const auto aligned = [&](const void* at) {
    return reinterpret_cast<uintptr_t>(at) % (static_cast<uintptr_t>(elements) * sizeof(E)) == 0;
  };
  return s.channels / s.groups % elements == 0 && s.x_pixel_stride % elements == 0 &&
         s.y_pixel_stride % elements == 0 && aligned(s.x) && aligned(s.y);
}

template <class E> void launch_shuffle(ShuffleKernel<E> kernel, int64_t vectors, const Shuffle& s, const Call& call) {
  const Params<E> o{.x = static_cast<const E*>(s.x),
                    .y = static_cast<E*>(s.y),
                    .x_pixel_stride = s.x_pixel_stride,
                    .y_pixel_stride = s.y_pixel_stride,
                    .tiling = PixelTiling(s.pixels, vectors),
                    .groups = Divider(s.groups),
                    .per_group = static_cast<int>(s.channels / s.groups)};
  launch(kernel, {.x = o.tiling.blocks(), .threads = kPixelThreads}, o, call);
}

// In vectors of kBytes, if there is a kernel for the groups and everything lies so.
template <class E, int kBytes> bool run_vectors(const Shuffle& s, const Call& call) {
  constexpr int kVector = kBytes / static_cast<int>(sizeof(E));
  const ShuffleKernel<E> kernel = with_groups<E, kVector>(s.groups);
  if (!kernel || !in_vectors<E>(s, kVector)) return false;
  launch_shuffle<E>(kernel, s.channels / s.groups / kVector, s, call);
  return true;
}

template <class E> void run(const Shuffle& s, const Call& call) {
  if (run_vectors<E, 16>(s, call)) return;
  if constexpr (sizeof(E) < 4)
    if (run_vectors<E, 4>(s, call)) return;
  launch_shuffle<E>(shuffle_elements<E>, s.channels, s, call);
}

}  // namespace

void channel_shuffle(const Shuffle& shuffle, const Call& call) {
  if (shuffle.pixels >= int64_t{1} << 31) fail(call, "its pixels are counted in 32 bits");
  switch (shuffle.element_size) {
    case 1: return run<uint8_t>(shuffle, call);
    case 2: return run<uint16_t>(shuffle, call);
    case 4: return run<uint32_t>(shuffle, call);
    case 8: return run<uint64_t>(shuffle, call);
    default: fail(call, "elements of " + std::to_string(shuffle.element_size) + " bytes are not moved");
  }
}

}  // namespace cnnkern::cuda
