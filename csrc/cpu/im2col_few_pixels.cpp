// Convolution to few pixels, as in squeeze-and-excitation blocks, classifiers and the last layers at batch 1.
//
//   y[pixel][k] = < columns[pixel], w[k] >,  columns[pixel] the r*s*c values under the filter at that pixel
//
// Each weight is used as often as there are pixels. Packing it costs more than that, so the filters are read where they
// lie (KRSC), by dot products along them (microkernels/dot.h); the columns are what is copied. Bound: reading w, one
// value for 2*gemm_m flops, up to some 8 pixels; then FMA.
#include <array>
#include <utility>

#include "gemm_operands.h"
#include "im2col.h"
#include "microkernels/dot.h"
#include "naming.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

constexpr int kMostRows = kRegisters == 32 ? 8 : 4;  // pixels of a tile
constexpr int64_t kBlock = 24;                       // filters, a multiple of what any tile takes

constexpr int tile_filters(int rows) { return std::min(kDotColumns, kDotSums / rows); }

template <class T> using FilterTile = DotTile<GemmIn<T>, T, T>;
template <class T> struct FilterTiles { void (*many)(const FilterTile<T>&), (*one)(const FilterTile<T>&); };

template <class T, int... kRow>
constexpr std::array<FilterTiles<T>, kMostRows> filter_tiles(std::integer_sequence<int, kRow...>) {
  return {{{dot_tile<GemmIn<T>, T, T, kRow + 1, tile_filters(kRow + 1)>, dot_tile<GemmIn<T>, T, T, kRow + 1, 1>}...}};
}

// For each number of pixels, the tile of tile_filters() filters and that of one.
template <class T> constexpr auto kFilterTiles = filter_tiles<T>(std::make_integer_sequence<int, kMostRows>{});

// The columns of all pixels, rows `stride` apart.
template <class T> struct Columns {
  const GemmIn<T>* data;
  int64_t stride;
};

template <class T> Columns<T> stage_columns(const ConvProblem& p, const T* x) {
  constexpr int64_t kLine = 64 / sizeof(GemmIn<T>), kPage = 4096 / sizeof(GemmIn<T>);
  if constexpr (std::is_same_v<GemmIn<T>, T>) {
    if (p.pointwise() && !p.strided() && p.x_stride() % kPage) return {x, p.x_stride()};
  }
  // An odd number of cache lines: the same element of all pixels in one set of L1 would be evicted in turn.
  const int64_t stride = ((p.r * p.s * p.c + kLine - 1) / kLine | 1) * kLine;
  return {write_columns<T, GemmIn<T>>(p, x, p.n, p.c, stride), stride};
}

template <class T> void few_pixels_fprop(const ConvProblem& p, const Operands& operands) {
  const int64_t pixels = p.n * p.p() * p.q(), filter = p.r * p.s * p.c;
  const Columns<T> columns = stage_columns(p, static_cast<const T*>(operands.x));
  const EpilogueArgs<T> epilogue = epilogue_args<T>(p, operands, 0);
  const int64_t tiles = (pixels + kMostRows - 1) / kMostRows, rows = (pixels + tiles - 1) / tiles;
  const DotTap whole{0, 0};

  // Filters [k, last) at pixels [first, first + count).
  const auto run_tiles = [&](int64_t first, int count, int64_t k, int64_t last) {
    FilterTile<T> tile{};
    tile.taps = &whole;
    tile.tap_count = 1;
    tile.depth = filter;
    tile.x = columns.data + first * columns.stride;
    tile.x_row_stride = columns.stride;
    tile.w_row_stride = filter;
    tile.y_row_stride = p.y_stride();
    tile.epilogue = p.epilogue == Epilogue{} ? nullptr : &epilogue;
    tile.pixel = first;
    const FilterTiles<T>& functions = kFilterTiles<T>[count - 1];
    const int many = tile_filters(count);
    while (k < last) {
      const bool whole_tile = k + many <= last;
      tile.w = static_cast<const T*>(operands.w) + k * filter;
      tile.y = static_cast<T*>(operands.y) + first * p.y_stride() + k;
      tile.column = k;
      (whole_tile ? functions.many : functions.one)(tile);
      k += whole_tile ? many : 1;
    }
  };
  constexpr int64_t kGrain = 1 << 17;  // multiplications that are worth a thread
  parallel_for((p.k + kBlock - 1) / kBlock, kGrain / (kBlock * filter * pixels) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      for (int64_t first = 0; first < pixels; first += rows)
        run_tiles(first, static_cast<int>(std::min(rows, pixels - first)), block * kBlock,
                  std::min(p.k, (block + 1) * kBlock));
  });
}

std::string why_not(const ConvProblem& p) {
  if (p.groups != 1) return "it computes one group";
  return "";
}

// Packing a weight costs half a step of the GEMM, once for all pixels; adding up a sum's lanes costs 3 to 4 steps, once
// for each. On one Zen 4 core with 640 input and 1280 output maps this takes 3.2 times less than packing at one pixel,
// 1.7 times less at 8 and 1.1 times less at 32.
template <class T> std::string rather_not(const ConvProblem& p) {
  constexpr int64_t kMostPixels =
      std::is_same_v<GemmIn<T>, T> ? 32 : 2 * kMostRows;  // what is widened here is so again
  const int64_t pixels = p.n * p.p() * p.q(), filter = p.r * p.s * p.c;
  if (pixels > kMostPixels)
    return "with more than " + std::to_string(kMostPixels) + " pixels weights are worth packing";
  if (!kMasksLoads<T> && filter % kLanes<T>) return "parts of a vector go through memory";
  if (pixels > std::max<int64_t>(2, filter / (8 * Step<GemmIn<T>>::kDepth)))
    return "adding up the lanes of short sums takes longer than packing the weights";
  return "";
}

template <class T> void append(KernelList& list) {
  const std::string tile = std::to_string(kMostRows) + "x" + std::to_string(tile_filters(kMostRows));
  list.push_back(
      {kernel_name("im2col", Direction::fprop, kDTypeOf<T>, tile), why_not, rather_not<T>, few_pixels_fprop<T>});
}

}  // namespace

void append_im2col_few_pixels(KernelList& list) {
  append<bf16>(list);
#if !defined(__AVX512BF16__)
  append<float>(list);
  append<double>(list);
  append<f16>(list);
#endif
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
