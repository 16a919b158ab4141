// Gradients of a pointwise convolution with few pixels, as in squeeze-and-excitation blocks and classifiers.
//
//   dgrad  dx[pixel] = sum over k of dy[pixel][k] * w[k]        wgrad  dw[k] = sum over pixels of dy[pixel][k] * x[pixel]
//
// Each weight is used as often as there are pixels, so w is read, and dw written, once and where it lies: a few filters
// at a time are combined with all pixels (microkernels/combine.h). Threads split the maps of dx, or the filters of dw.
// Bound: bytes of w.
#include <array>
#include <utility>

#include "gemm_operands.h"
#include "microkernels/combine.h"
#include "naming.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

constexpr int kMostPixels = 4;       // with more a GEMM has as little to do beside its multiplications
constexpr int64_t kGrain = 1 << 17;  // multiplications that are worth a thread

template <class T> using Dgrad = Combination<T, acc_t<T>, T>;
template <class T> using Wgrad = Combination<T, T, T>;
template <class Rows> struct CombineTiles { void (*many)(const Rows&), (*one)(const Rows&); };

template <class T, int... kPixel>
constexpr std::array<CombineTiles<Dgrad<T>>, kMostPixels> dgrad_tiles(std::integer_sequence<int, kPixel...>) {
  return {{{combine_tile<T, acc_t<T>, T, kPixel + 1, combined_filters(kPixel + 1), true>,
            combine_tile<T, acc_t<T>, T, kPixel + 1, 1, true>}...}};
}
template <class T, int... kPixel>
constexpr std::array<CombineTiles<Wgrad<T>>, kMostPixels> wgrad_tiles(std::integer_sequence<int, kPixel...>) {
  return {{{combine_tile<T, T, T, combined_filters(kPixel + 1), kPixel + 1, false>,
            combine_tile<T, T, T, 1, kPixel + 1, false>}...}};
}

// For each number of pixels, the tile of combined_filters() filters and that of one.
template <class T> constexpr auto kDgradTiles = dgrad_tiles<T>(std::make_integer_sequence<int, kMostPixels>{});
template <class T> constexpr auto kWgradTiles = wgrad_tiles<T>(std::make_integer_sequence<int, kMostPixels>{});

// Calls body(first filter, tile) for filters [begin, end), as many at a time as a tile takes.
template <class Rows, class Body>
void each_tile(const CombineTiles<Rows>& tiles, int pixels, int64_t begin, int64_t end, const Body& body) {
  const int many = combined_filters(pixels);
  int64_t k = begin;
  for (; k + many <= end; k += many) body(k, tiles.many);
  for (; k < end; ++k) body(k, tiles.one);
}

int pixel_count(const ConvProblem& p) { return static_cast<int>(p.n * p.h * p.w); }

template <class T> void few_pixels_dgrad(const ConvProblem& p, const Operands& operands) {
  using A = acc_t<T>;
  const int pixels = pixel_count(p);
  T* dx = static_cast<T*>(operands.x);
  A* sums;
  int64_t stride = p.x_stride();
  if constexpr (std::is_same_v<A, T>) sums = dx;
  else sums = scratch<A>(Scratch::sums, pixels * p.c), stride = p.c;
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t lines = (p.c + kLine - 1) / kLine;
  parallel_for(lines, kGrain / (p.k * pixels * kLine) + 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kLine, count = std::min(p.c, end * kLine) - first;
    for (int pixel = 0; pixel < pixels; ++pixel) std::fill_n(sums + pixel * stride + first, count, A{});
    each_tile(kDgradTiles<T>[pixels - 1], pixels, 0, p.k, [&](int64_t k, void (*tile)(const Dgrad<T>&)) {
      tile({.in = static_cast<const T*>(operands.w) + k * p.c + first,
            .in_stride = p.c,
            .out = sums + first,
            .out_stride = stride,
            .coefficients = static_cast<const T*>(operands.y) + k,
            .coefficient_out = p.y_stride(),
            .coefficient_in = 1,
            .length = count});
    });
    if constexpr (!std::is_same_v<A, T>) {
      for (int pixel = 0; pixel < pixels; ++pixel)
        std::transform(sums + pixel * stride + first, sums + pixel * stride + first + count,
                       dx + pixel * p.x_stride() + first, [](A sum) { return from_acc<T>(sum); });
    }
  });
}

template <class T> void few_pixels_wgrad(const ConvProblem& p, const Operands& operands) {
  using A = acc_t<T>;
  const int pixels = pixel_count(p);
  const T* dy = static_cast<const T*>(operands.y);
  parallel_for(p.k, kGrain / (p.c * pixels) + 1, [&](int64_t begin, int64_t end) {
    each_tile(kWgradTiles<T>[pixels - 1], pixels, begin, end, [&](int64_t k, void (*tile)(const Wgrad<T>&)) {
      tile({.in = static_cast<const T*>(operands.x),
            .in_stride = p.x_stride(),
            .out = static_cast<T*>(operands.w) + k * p.c,
            .out_stride = p.c,
            .coefficients = dy + k,
            .coefficient_out = 1,
            .coefficient_in = p.y_stride(),
            .length = p.c});
    });
    if (!operands.dbias) return;
    for (int64_t k = begin; k < end; ++k) {
      A sum = 0;
      for (int pixel = 0; pixel < pixels; ++pixel) sum += to_acc(dy[pixel * p.y_stride() + k]);
      static_cast<A*>(operands.dbias)[k] = sum;
    }
  });
}

std::string why_not(const ConvProblem& p) {
  if (p.groups != 1) return "it computes one group";
  if (!p.pointwise() || p.strided()) return "the filter is not 1x1 without padding and stride";
  if (p.n * p.h * p.w > kMostPixels) return "its tiles have at most 4 pixels";
  return "";
}

// On one Zen 4 core with 640 input and 384 output maps dgrad takes a third of the GEMM's time at one pixel and half of it
// at 4.
template <class T> std::string rather_not_dgrad(const ConvProblem& p) {
  const int64_t pixels = p.n * p.h * p.w;
  if (Step<GemmIn<T>>::kDepth > 1 && pixels > 1) return "the GEMM multiplies pairs";
  if (p.c < 32 && pixels > 2) return "a few maps are quickly packed";
  return "";
}

template <class T> void append(KernelList& list) {
  const std::string tile = std::to_string(kMostPixels) + "x" + std::to_string(combined_filters(kMostPixels));
  const auto name = [&](Direction direction) { return kernel_name("pointwise", direction, kDTypeOf<T>, tile); };
  list.push_back({name(Direction::dgrad), why_not, rather_not_dgrad<T>, few_pixels_dgrad<T>});
  list.push_back({name(Direction::wgrad), why_not, nullptr, few_pixels_wgrad<T>});
}

}  // namespace

void append_pointwise_few_pixels(KernelList& list) {
  append<bf16>(list);
#if !defined(__AVX512BF16__)
  append<float>(list);
  append<double>(list);
  append<f16>(list);
#endif
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
