// Winograd's weight gradient, the adjoint of F(4x4, 3x3). That of F(2x2, 5x5) would be ten times as far off as torch's.
//
//   v[e] = input transform of x, d[e] = gradient transform of dy, for each of the 36 products e of a tile:
//   u[e][k][c] = sum over tiles of d[e][tile][k] * v[e][tile][c],   dw = filter transform's adjoint of u
//
// Tiles are taken in chunks, which all threads transform; then they share the 36 GEMMs, which add to u. x and dy NHWC
// with pixel strides, dw KRSC. dbias costs nothing: the product of the point (1, 1) is the sum of its tile of dy.
// Deterministic: each sum is one thread's, the chunks add in order.
//
// Bound: FMA, 2*gemm_m*gemm_n*gemm_k / 4 flops where 4 divides the image, and u, four times as large as dw, read and
// written once a chunk. Measured on one Zen 4 core: 56x56 images of 64 maps at 3.0 times the speed of the implicit
// GEMM, 14x14 images of 256 maps at 1.9 in a batch of 16. The error against fp64 is up to three and a half times that of
// torch, and what is not finite spreads as in winograd.cpp: `strict` leaves this kernel out.
#include "gemm_operands.h"
#include "naming.h"
#include "wgrad_gemm.h"
#include "winograd_tiles.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

using namespace winograd;

constexpr int kFilter = 3, kOut = kOutOf(kFilter);
constexpr int64_t kChunk = 96;       // tiles: a panel of v is 24 KiB in L1, u is repaid by 96 steps of each sum
constexpr int64_t kRun = 24;         // tiles summed before they are added to u: with 96 the error is 1.5 times as large
constexpr int kSumOfTile = kIn + 1;  // the product whose transform of dy is the sum of the tile

template <class T> class WinogradWgrad {
  using A = acc_t<T>;
  static constexpr int kLane = kLanes<T>, kWidth = kWgradVectors * kLane;
  static constexpr int64_t kPad = 64 / sizeof(A);  // a cache line: powers of two apart, products would share a set

 public:
  WinogradWgrad(const ConvProblem& p, const Operands& operands)
      : p_(p),
        x_{static_cast<const T*>(operands.x), p.h, p.w, p.x_stride(), p.c},
        dy_{static_cast<const T*>(operands.y), p.p(), p.q(), p.y_stride(), p.k},
        tiling_{p.n, p.p(), p.q(), kOut},
        panels_(ceil_div(p.c, kWidth)),
        v_stride_(panels_ * kChunk * kWidth + kPad),
        d_row_(round_up(p.k, kPad) + kPad),
        d_stride_(kChunk * d_row_ + kPad),
        u_row_(round_up(p.c, kLane)),
        u_stride_(p.k * u_row_ + kPad),
        v_(scratch<A>(Scratch::columns, kProducts * v_stride_)),
        d_(scratch<A>(Scratch::packed_dy, kProducts * d_stride_)),
        u_(scratch<A>(Scratch::sums, kProducts * u_stride_)),
        pairs_(kChunk) {
    for (int64_t t = 0; t < kChunk; ++t)
      pairs_[t] = {static_cast<int32_t>(t * d_row_), static_cast<int32_t>(t * kWidth)};
  }

  void run(T* dw, A* dbias) {
    if (dbias) std::fill_n(dbias, p_.k, A{});
    for (int64_t begin = 0; begin < tiling_.count(); begin += kChunk) {
      const int64_t count = std::min(kChunk, tiling_.count() - begin);
      parallel_for(count, 1, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; ++t) transform(begin + t, t);
      });
      parallel_for(kProducts * panels_, 1, [&](int64_t first, int64_t last) {
        for (int64_t item = first; item < last; ++item)
          multiply(static_cast<int>(item / panels_), item % panels_, count, begin > 0);
      });
      if (!dbias) continue;
      for (int64_t t = 0; t < count; ++t) {
        const A* sums = d_ + kSumOfTile * d_stride_ + t * d_row_;
        for (int64_t k = 0; k < p_.k; ++k) dbias[k] += sums[k];
      }
    }
    parallel_for(p_.k, 1, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) write_filter(k, dw + k * kFilter * kFilter * p_.c);
    });
  }

 private:
  // Both operands of a tile, to place t of the chunk.
  void transform(int64_t tile, int64_t t) const {
    const Tiling::Place at = tiling_.place(tile);
    const Patch<T> x = patch(x_, at.image, at.h - p_.pad_top, at.w - p_.pad_left, kIn);
    for (int64_t c = 0; c < p_.c; c += kLane)
      input_tile(x.data + c, x.row, x.pixel, lanes(p_.c - c), v_ + (c / kWidth * kChunk + t) * kWidth + c % kWidth,
                 v_stride_);
    const Patch<T> dy = patch(dy_, at.image, at.h, at.w, kOut);
    for (int64_t k = 0; k < p_.k; k += kLane)
      gradient_tile<kOut>(dy.data + k, dy.row, dy.pixel, lanes(p_.k - k), d_ + t * d_row_ + k, d_stride_);
  }

  static int lanes(int64_t rest) { return static_cast<int>(std::min<int64_t>(kLane, rest)); }

  // Adds the chunk to product e of a panel of input maps and all filters.
  void multiply(int e, int64_t panel, int64_t count, bool accumulate) const {
    const int columns = static_cast<int>(std::min<int64_t>(kWidth, u_row_ - panel * kWidth));
    const int vectors = columns / kLane, most = wgrad_rows(vectors);
    const A* d = d_ + e * d_stride_;
    const A* v = v_ + e * v_stride_ + panel * kChunk * kWidth;
    for (int64_t k = 0; k < p_.k; k += most) {
      const int rows = static_cast<int>(std::min<int64_t>(most, p_.k - k));
      A* u = u_ + e * u_stride_ + k * u_row_ + panel * kWidth;
      for (int64_t t = 0; t < count; t += kRun)
        wgrad_register_tile<A>(rows, vectors)(std::min(kRun, count - t), pairs_.data() + t, d + k, v, nullptr, u,
                                              u_row_, columns, accumulate || t);
    }
  }

  void write_filter(int64_t k, T* dw) const {
    for (int64_t c = 0; c < p_.c; c += kLane) {
      Vec<A> taps[kFilter][kFilter];
      filter_gradient(u_ + k * u_row_ + c, u_stride_, taps);
      for (int r = 0; r < kFilter; ++r)
        for (int s = 0; s < kFilter; ++s) store_n(dw + (r * kFilter + s) * p_.c + c, taps[r][s], lanes(p_.c - c));
    }
  }

  const ConvProblem& p_;
  const Images<T> x_, dy_;
  const Tiling tiling_;
  const int64_t panels_, v_stride_, d_row_, d_stride_, u_row_, u_stride_;
  A *const v_, *const d_, *const u_;
  std::vector<PixelPair> pairs_;
};

template <class T> void winograd_wgrad(const ConvProblem& p, const Operands& operands) {
  WinogradWgrad<T>(p, operands).run(static_cast<T*>(operands.w), static_cast<acc_t<T>*>(operands.dbias));
}

// Reading and writing u costs what 11 tiles do where it is in L3, 33 where it is not; a tile costs 36 multiplications
// instead of 9 a pixel. Measured on one Zen 4 core, a single image: 14x14 of 256 maps 1.8 times as fast as by the
// implicit GEMM, of 512 maps 1.05; 7x7 of 512 maps 0.3.
std::string rather_not(const ConvProblem& p) {
  if (p.c < 24 || p.k < 24) return "with few maps the transforms cost more than they save";
  const Tiling tiling{p.n, p.p(), p.q(), kOut};
  if (p.n * tiling.height * tiling.width * kFilter * kFilter <= (tiling.count() + 24) * kProducts)
    return "with few pixels, or tiles that hang over, the sums of products cost more than they save";
  return "";
}

template <class T> void append(KernelList& list) {
  list.push_back({kernel_name("winograd", Direction::wgrad, kDTypeOf<T>, tile_name<kFilter>()), why_not<kFilter>,
                  rather_not, winograd_wgrad<T>});
}

}  // namespace

void append_winograd_wgrad(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
