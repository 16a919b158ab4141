// Winograd convolution, F(4x4, 3x3) and F(2x2, 5x5): a quarter of a 3x3 filter's multiplications, 0.36 of a 5x5 one's.
//
//   fprop  u[e] = filter transform of w, v[e] = input transform of x, for each of the 36 products e of a tile:
//          m[e][tile][k] = sum over c of v[e][tile][c] * u[e][c][k],  y = output transform of m
//   dgrad  the same over dy with the filters rotated and their maps exchanged, padded by 2 - padding
//
// x and y NHWC with pixel strides, w KRSC. The 36 GEMMs run on brgemm_tile. What they multiply stays in the cache:
// where there are more tiles than filters each thread takes some tiles, a block of them at a time, and computes all of
// u; else it takes some panels of filters, a block of their depth at a time, and computes all of v. What another core
// has computed takes longer to read than to compute again: 0.4 ns a byte on two Zen 4 cores.
//
// Bound: FMA, for 3x3 2*gemm_m*gemm_n*gemm_k / 4 flops where 4 divides the image. The transforms add a sixth to that at 64
// maps, less with more. Measured on one Zen 4 core: 56x56 images of 64 maps at 2.8 times the speed of the implicit
// GEMM, 14x14 of 512 maps, a single image, at 1.9. The error against fp64 is that of direct convolution from 128 maps
// on and up to three times as large with fewer, and a value that is not finite spreads over the tiles that see it:
// `strict` leaves this family out.
#include "gemm_operands.h"
#include "naming.h"
#include "winograd_tiles.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

using namespace winograd;

constexpr int kTileRows = kRegisters >= 32 ? 14 : 6, kTileVectors = 2;  // of the GEMMs' register tile
constexpr int64_t kBlockBytes = 640 * 1024;  // of v and m: with a panel's product of u they stay in L2
// Terms of a sum that are added up by themselves: 6% slower than 64, and half the error at 64 maps.
constexpr int64_t kRun = 32;
constexpr int64_t kMostCopiesBytes = 24 << 20;     // of u or v, one a thread: they stay in L3
constexpr int64_t kMinBlock = 28, kMaxBlock = 56;  // tiles
constexpr int64_t kSharedBlock = 112;              // where u comes out of memory for each block

template <class T, int kFilter> class Winograd {
  static constexpr int kOut = kOutOf(kFilter);
  using A = acc_t<T>;
  static constexpr int kLane = kLanes<T>, kWidth = kTileVectors * kLane;
  static constexpr int64_t kDepthBlock = 2048 / kWidth;  // of u, where it is computed as it is needed: 288 KiB
  static constexpr int64_t kPad = 64 / sizeof(A);  // a cache line: powers of two apart, products would share a set

 public:
  Images<T> x;
  int64_t depth;  // its maps
  T* y;
  Tiling tiling;  // of y
  int64_t y_pixel_stride, columns;
  int64_t pad_top, pad_left;
  EpilogueArgs<T> epilogue;
  const typename Gemm<A, T>::Pack* pack;  // panels of all taps
  bool rotated;                           // the last tap is the filter's first

  void run() const {
    if (tiles() == 0 || columns == 0) return;
    const bool fewer_tiles = tiles() <= columns && panels() >= thread_count();
    if (fewer_tiles && copies_fit(kProducts * v_stride(tiles()))) split_panels();
    else split_tiles();
  }

 private:
  int64_t tiles() const { return tiling.count(); }
  int64_t panels() const { return (columns + kWidth - 1) / kWidth; }

  // Strides from product to product, and of v from tile to tile.
  int64_t v_row() const { return round_up(depth, kPad) + kPad; }
  int64_t v_stride(int64_t tiles) const { return tiles * v_row() + kPad; }
  static int64_t u_stride(int64_t depth) { return depth * kWidth + kPad; }
  static int64_t m_stride(int64_t tiles) { return tiles * kWidth + kPad; }

  // Whether each thread may have so many products of its own.
  static bool copies_fit(int64_t products) {
    return thread_count() * products * static_cast<int64_t>(sizeof(A)) <= kMostCopiesBytes;
  }

  // Each thread takes some tiles and transforms all filters, or, where so many copies would fill the caches, its share.
  void split_tiles() const {
    const int64_t panel_size = kProducts * u_stride(depth), size = panels() * panel_size;
    const auto transform_panels = [&](int64_t begin, int64_t end, A* u) {
      for (int64_t panel = begin; panel < end; ++panel)
        transform_filters(pack_panel(panel), depth, u + panel * panel_size);
    };
    A* shared = nullptr;
    if (!copies_fit(size)) {
      shared = scratch<A>(Scratch::packed, size);
      parallel_for(panels(), 1, [&](int64_t begin, int64_t end) { transform_panels(begin, end, shared); });
    }
    const int64_t fitting = kBlockBytes / (kProducts * (v_row() + kWidth) * static_cast<int64_t>(sizeof(A)));
    const int64_t block =
        (shared ? kSharedBlock : std::clamp<int64_t>(fitting, kMinBlock, kMaxBlock)) / kTileRows * kTileRows;
    parallel_for(tiles(), kTileRows, [&](int64_t begin, int64_t end) {
      A* u = shared;
      if (!u) transform_panels(0, panels(), u = scratch<A>(Scratch::packed, size));
      A* v = scratch<A>(Scratch::columns, kProducts * v_stride(block));
      const Products products(*this, v, block);
      for (; begin < end; begin += block) {
        const int64_t count = std::min(block, end - begin);
        for (int64_t t = 0; t < count; ++t) transform_tile(begin + t, v + t * v_row(), v_stride(block));
        for (int64_t panel = 0; panel < panels(); ++panel) {
          products.multiply(u + panel * panel_size, u_stride(depth), 0, depth, count);
          for (int64_t t = 0; t < count; ++t) write_tile(begin + t, products.of_tile(t), m_stride(block), panel);
        }
      }
    });
  }

  // Each thread takes some filters, a block of their depth at a time, and transforms all of x.
  void split_panels() const {
    const int64_t count = tiles();
    parallel_for(panels(), 1, [&](int64_t begin, int64_t end) {
      A* v = scratch<A>(Scratch::columns, kProducts * v_stride(count));
      for (int64_t t = 0; t < count; ++t) transform_tile(t, v + t * v_row(), v_stride(count));
      A* u = scratch<A>(Scratch::packed, kProducts * u_stride(kDepthBlock));
      const Products products(*this, v, count);
      for (int64_t panel = begin; panel < end; ++panel) {
        const A* taps = pack_panel(panel);
        for (int64_t d = 0; d < depth; d += kDepthBlock) {
          const int64_t some = std::min(kDepthBlock, depth - d);
          transform_filters(taps + d * kWidth, some, u);
          products.multiply(u, u_stride(some), d, some, count);
        }
        for (int64_t t = 0; t < count; ++t) write_tile(t, products.of_tile(t), m_stride(count), panel);
      }
    });
  }

  // m[e][tile][column of a panel] of up to `room` tiles, from v[e][tile][depth].
  class Products {
   public:
    Products(const Winograd& conv, const A* v, int64_t room)
        : v_stride_(conv.v_stride(room)),
          m_stride_(m_stride(room)),
          m_(scratch<A>(Scratch::sums, kProducts * m_stride_)),
          rows_(room),
          pixels_(room) {
      for (int64_t t = 0; t < room; ++t) rows_[t] = v + t * conv.v_row(), pixels_[t] = t;
    }

    // Adds `depth` elements of the sums, from `first`, for the first `count` tiles; u[e] is those of one panel.
    void multiply(const A* u, int64_t u_stride, int64_t first, int64_t depth, int64_t count) const {
      const int64_t no_offset = 0, parts = (count + kTileRows - 1) / kTileRows, most = (count + parts - 1) / parts;
      for (int e = 0; e < kProducts; ++e) {
        Tile<A, A> tile{.taps = 1,
                        .rows = nullptr,
                        .rows_per_tap = 0,
                        .x_offsets = nullptr,
                        .tap_offsets = &no_offset,
                        .depth = 0,
                        .panel = nullptr,
                        .y = m_ + e * m_stride_,
                        .y_pixel_stride = kWidth,
                        .pixels = nullptr,
                        .fetch_rows = 0,
                        .column = 0,
                        .columns = kWidth};
        for (int64_t t = 0; t < count; t += most) {
          tile.rows = rows_.data() + t;
          tile.pixels = pixels_.data() + t;
          for (int64_t d = 0; d < depth; d += kRun) {
            const int64_t v_offset = e * v_stride_ + first + d;
            tile.x_offsets = &v_offset;
            tile.depth = std::min(kRun, depth - d);
            tile.panel = u + e * u_stride + d * kWidth;
            EpilogueArgs<A> sums;
            if (first + d) sums.residual = tile.y, sums.residual_pixel_stride = kWidth;
            register_tile<A, A>(static_cast<int>(std::min(most, count - t)), kTileVectors)(tile, sums);
          }
        }
      }
    }

    const A* of_tile(int64_t tile) const { return m_ + tile * kWidth; }

   private:
    const int64_t v_stride_, m_stride_;
    A* const m_;
    std::vector<const A*> rows_;
    std::vector<int64_t> pixels_;
  };

  // The taps of a panel, [r][s][depth][kWidth].
  const A* pack_panel(int64_t panel) const {
    A* taps = scratch<A>(Scratch::local, kFilter * kFilter * depth * kWidth);
    const int64_t first = panel * kWidth;
    (*pack)(first, static_cast<int>(std::min<int64_t>(kWidth, columns - first)), taps, kWidth);
    return taps;
  }

  // `some` of a panel's depth: u[e][some][kWidth].
  void transform_filters(const A* taps, int64_t some, A* u) const {
    const int64_t tap = depth * kWidth, last = kFilter * kFilter - 1;
    for (int64_t at = 0; at < some * kWidth; at += kLane) {
      if (rotated) filter_tile<kFilter>(taps + last * tap + at, -tap, u + at, u_stride(some));
      else filter_tile<kFilter>(taps + at, tap, u + at, u_stride(some));
    }
  }

  void transform_tile(int64_t tile, A* v, int64_t stride) const {
    const Tiling::Place at = tiling.place(tile);
    const Patch<T> from = patch(x, at.image, at.h - pad_top, at.w - pad_left, kIn);
    int64_t c = 0;
    for (; c + kLane <= depth; c += kLane) input_tile(from.data + c, from.row, from.pixel, kLane, v + c, stride);
    const int rest = static_cast<int>(depth - c);
    if (rest) input_tile(from.data + c, from.row, from.pixel, rest, v + c, stride);
  }

  void write_tile(int64_t tile, const A* m, int64_t stride, int64_t panel) const {
    const Tiling::Place at = tiling.place(tile);
    const int rows = static_cast<int>(std::min<int64_t>(kOut, tiling.height - at.h));
    const int cols = static_cast<int>(std::min<int64_t>(kOut, tiling.width - at.w));
    const int64_t first = (at.image * tiling.height + at.h) * tiling.width + at.w;
    const int64_t end = std::min(columns, (panel + 1) * kWidth);
    for (int64_t k = panel * kWidth; k < end; k += kLane, m += kLane) {
      const int n = static_cast<int>(std::min<int64_t>(kLane, end - k));
      Vec<A> out[kOut][kOut];
      output_tile(m, stride, out);
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < cols; ++j) {
          const int64_t pixel = first + i * tiling.width + j;
          const Vec<A> v = affine<T>(out[i][j], epilogue, k, pixel, n);
          store_n(y + pixel * y_pixel_stride + k, activate(v, epilogue.activation, epilogue.alpha), n);
        }
    }
  }
};

template <class T, int kFilter> void winograd_fprop(const ConvProblem& p, const Operands& operands) {
  PackFilters<T> pack;
  pack.w = static_cast<const T*>(operands.w);
  pack.taps = p.r * p.s;
  pack.depth = p.c;
  const Winograd<T, kFilter> conv{.x = {static_cast<const T*>(operands.x), p.h, p.w, p.x_stride(), p.c},
                                  .depth = p.c,
                                  .y = static_cast<T*>(operands.y),
                                  .tiling = {p.n, p.p(), p.q(), kOutOf(kFilter)},
                                  .y_pixel_stride = p.y_stride(),
                                  .columns = p.k,
                                  .pad_top = p.pad_top,
                                  .pad_left = p.pad_left,
                                  .epilogue = epilogue_args<T>(p, operands, 0),
                                  .pack = &pack,
                                  .rotated = false};
  conv.run();
}

template <class T, int kFilter> void winograd_dgrad(const ConvProblem& p, const Operands& operands) {
  PackMaps<T> pack;
  pack.w = static_cast<const T*>(operands.w);
  pack.taps = p.r * p.s;
  pack.filters = p.k;
  pack.maps = p.c;
  const Winograd<T, kFilter> conv{.x = {static_cast<const T*>(operands.y), p.p(), p.q(), p.y_stride(), p.k},
                                  .depth = p.k,
                                  .y = static_cast<T*>(operands.x),
                                  .tiling = {p.n, p.h, p.w, kOutOf(kFilter)},
                                  .y_pixel_stride = p.x_stride(),
                                  .columns = p.c,
                                  .pad_top = kFilter - 1 - p.pad_top,
                                  .pad_left = kFilter - 1 - p.pad_left,
                                  .epilogue = {},
                                  .pack = &pack,
                                  .rotated = true};
  conv.run();
}

// A tile costs 36 multiplications instead of the filter's size a pixel, and the filters' transform what 5 tiles do.
// Measured on one Zen 4 core with 3x3 filters: a single image of 7x7 or 8x8 is 1.4 times as fast as by the implicit
// GEMM, 4x4 and 6x6 are slower. For bf16 the alternative multiplies pairs, twice as fast; 28x28 is 1.4 times as fast,
// 14x14 as slow.
template <class T, int kFilter> std::string rather_not(const ConvProblem& p) {
  constexpr bool kPairs = std::is_same_v<T, bf16>;
  constexpr int64_t kFewMaps = 24, kTileCost = kPairs ? 90 : 36, kFilterTiles = kPairs ? 16 : 5;
  if (p.c < kFewMaps || p.k < kFewMaps) return "with few maps the transforms cost more than they save";
  const bool fprop = p.direction == Direction::fprop;
  const Tiling tiling{p.n, fprop ? p.p() : p.h, fprop ? p.q() : p.w, kOutOf(kFilter)};
  if (p.n * tiling.height * tiling.width * kFilter * kFilter <= (tiling.count() + kFilterTiles) * kTileCost)
    return "with few pixels, or tiles that hang over, more is multiplied than saved";
  return "";
}

template <class T, int kFilter> void append(KernelList& list) {
  const auto add = [&](Direction direction, auto run) {
    list.push_back({kernel_name("winograd", direction, kDTypeOf<T>, tile_name<kFilter>()), why_not<kFilter>,
                    rather_not<T, kFilter>, run});
  };
  add(Direction::fprop, winograd_fprop<T, kFilter>);
  add(Direction::dgrad, winograd_dgrad<T, kFilter>);
}

template <class T> void append_filters(KernelList& list) {
  append<T, 3>(list);
  append<T, 5>(list);
}

}  // namespace

void append_winograd(KernelList& list) {
  append_filters<float>(list);
  append_filters<bf16>(list);
  append_filters<f16>(list);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
