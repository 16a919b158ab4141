// Direct input gradient for few input maps, such as those of the 3-channel stem of most networks.
//
//   dx[n,h,w,c] = sum over r,s,k of dy[n,p,q,k] * w[k,r,s,c],  p*sh = h + pt - r*dh,  q*sw = w + pl - s*dw
//
// A GEMM with c columns would leave most lanes of a vector empty, so k is in the lanes (microkernels/dot.h): a tile of
// pixels x c sums reads vectors of dy and of w. The pixels of a tile agree in w modulo the stride, so they have the same
// taps and read neighbouring columns of dy. In dense NHWC the taps of a filter row are then one run of memory, which
// fills the vectors where k is small. A pixel whose taps are not all inside dy is a tile of its own.
// w is packed once as [class of pixels][r][c][s][k]. Bound: FMA, 2*gemm_m*gemm_n*gemm_k flops.
#include <array>
#include <utility>

#include "gemm_operands.h"
#include "implicit_gemm.h"
#include "microkernels/dot.h"
#include "naming.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

template <class In, class Out> struct DotTiles {
  void (*many)(const DotTile<In, Out>&), (*one)(const DotTile<In, Out>&);
};

template <class In, class Out, int... kColumn>
constexpr std::array<DotTiles<In, Out>, kDotColumns> dot_tiles(std::integer_sequence<int, kColumn...>) {
  return {{{dot_tile<In, Out, dot_rows(kColumn + 1), kColumn + 1>, dot_tile<In, Out, 1, kColumn + 1>}...}};
}
template <class In, class Out>
constexpr auto kDotTiles = dot_tiles<In, Out>(std::make_integer_sequence<int, kDotColumns>{});

// The pixels of dx whose coordinates agree modulo the stride, with their taps in the order in which dy has them.
struct PixelClass {
  Lattice lattice;
  int64_t row_taps;  // taps of each filter row
  int64_t panel;     // where its weights begin
};

template <class T> class InputGradient {
  using In = GemmIn<T>;

 public:
  InputGradient(const ConvProblem& p, const Operands& operands)
      : p_(p),
        dy_(stage_pixels(static_cast<const T*>(operands.y), p.n * p.p() * p.q(), p.k, p.y_stride(), Scratch::local)),
        dx_(static_cast<T*>(operands.x)) {
    packed_ = scratch<In>(Scratch::packed, p.r * p.s * p.c * dy_.depth);
    int64_t panel = 0;
    for (int64_t a = 0; a < std::min(p.stride_h, p.h); ++a)
      for (int64_t b = 0; b < std::min(p.stride_w, p.w); ++b) {
        Lattice lattice = dgrad_lattice(p, a, b, 1);
        std::vector<Tap>& taps = lattice.taps;
        std::reverse(taps.begin(), taps.end());
        const int64_t row_taps =
            std::count_if(taps.begin(), taps.end(), [&](const Tap& t) { return t.h == taps[0].h; });
        classes_.push_back({std::move(lattice), row_taps, panel});
        pack(classes_.back(), static_cast<const T*>(operands.w));
        panel += classes_.back().lattice.taps.size() * p.c * dy_.depth;
      }
  }

  void run() const {
    parallel_for(p_.n * p_.h, 1, [&](int64_t begin, int64_t end) {
      std::vector<DotTap> taps;
      for (int64_t row = begin; row < end; ++row)
        for (int64_t b = 0; b < std::min(p_.stride_w, p_.w); ++b) run_row(row / p_.h, row % p_.h, b, taps);
    });
  }

 private:
  void pack(const PixelClass& pixels, const T* w) {
    In* to = packed_ + pixels.panel;
    const std::vector<Tap>& taps = pixels.lattice.taps;
    for (size_t row = 0; row < taps.size(); row += pixels.row_taps)
      for (int64_t c = 0; c < p_.c; ++c)
        for (int64_t t = 0; t < pixels.row_taps; ++t, to += dy_.depth) {
          const T* from = w + taps[row + t].offset * p_.c + c;
          for (int64_t k = 0; k < p_.k; ++k, from += p_.r * p_.s * p_.c) {
            if constexpr (std::is_same_v<In, T>) to[k] = *from;
            else to[k] = to_acc(*from);
          }
          std::fill(to + p_.k, to + dy_.depth, In{});
        }
  }

  // Into L2, the one row of dy that is new to it: a third faster where dy is 205 MB, on one Zen 4 core.
  void fetch(const In* dy, int64_t pixels) const {
    constexpr int64_t kLine = 64 / sizeof(In);
    for (int64_t at = 0; at < pixels * dy_.stride; at += kLine) __builtin_prefetch(dy + at, 0, 2);
  }

  // The pixels of image n, row h, with w = b modulo the stride.
  void run_row(int64_t n, int64_t h, int64_t b, std::vector<DotTap>& dots) const {
    const PixelClass& pixels = classes_[h % p_.stride_h * std::min(p_.stride_w, p_.w) + b];
    const std::vector<Tap>& taps = pixels.lattice.taps;
    const int64_t row_taps = pixels.row_taps, cols = pixels.lattice.cols, i = h / p_.stride_h;
    const bool one_run = dy_.stride == dy_.depth && (row_taps < 2 || taps[1].w == taps[0].w + 1);
    DotTile<In, T> tile{};
    tile.x_row_stride = dy_.stride;
    tile.panel = packed_ + pixels.panel;
    tile.column_stride = row_taps * dy_.depth;
    tile.y_row_stride = p_.stride_w * p_.x_stride();

    // Taps [first, last) of every filter row that reaches row i.
    const auto use_taps = [&](int64_t first, int64_t last) {
      const int64_t run = one_run ? last - first : 1;
      dots.clear();
      for (size_t row = 0; row < taps.size(); row += row_taps) {
        const int64_t p = i + taps[row].h;
        if (p < 0 || p >= p_.p()) continue;
        for (int64_t t = first; t < last; t += run)
          dots.push_back({((n * p_.p() + p) * p_.q() + taps[row + t].w) * dy_.stride,
                          (static_cast<int64_t>(row) * p_.c + t) * dy_.depth});
      }
      tile.taps = dots.data();
      tile.tap_count = dots.size();
      tile.depth = run * dy_.depth;
    };
    const auto run_tile = [&](void (*function)(const DotTile<In, T>&), int64_t j) {
      tile.x = dy_.data + j * dy_.stride;
      tile.y = dx_ + ((n * p_.h + h) * p_.w + b + j * p_.stride_w) * p_.x_stride();
      function(tile);
    };
    const auto [many, one] = kDotTiles<In, T>[p_.c - 1];
    const auto run_border = [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        const auto first =
            std::find_if(taps.begin(), taps.begin() + row_taps, [&](const Tap& t) { return j + t.w >= 0; });
        const auto last = std::find_if(first, taps.begin() + row_taps, [&](const Tap& t) { return j + t.w >= p_.q(); });
        use_taps(first - taps.begin(), last - taps.begin());
        run_tile(one, j);
      }
    };
    // Columns [left, right) have all their taps inside dy.
    const int64_t left = row_taps ? std::clamp<int64_t>(-taps[0].w, 0, cols) : 0;
    const int64_t right = row_taps ? std::clamp<int64_t>(p_.q() - taps[row_taps - 1].w, left, cols) : cols;
    run_border(0, left);
    use_taps(0, row_taps);
    const int rows = dot_rows(static_cast<int>(p_.c));
    int64_t j = left;
    for (; j + rows <= right; j += rows) {
      if (!dots.empty()) fetch(dy_.data + dots.back().x + (j + 2 * rows) * dy_.stride, rows);
      run_tile(many, j);
    }
    for (; j < right; ++j) run_tile(one, j);
    run_border(right, cols);
  }

  const ConvProblem& p_;
  const Pixels<T> dy_;
  T* const dx_;
  std::vector<PixelClass> classes_;
  In* packed_;
};

template <class T> void direct_dgrad(const ConvProblem& p, const Operands& operands) {
  InputGradient<T>(p, operands).run();
}

std::string why_not(const ConvProblem& p) {
  if (p.groups != 1) return "it computes one group";
  if (p.c > kDotColumns) return "its tiles have at most 8 input maps";
  return "";
}

std::string rather_not(const ConvProblem& p) {
  if (p.r * p.s == 1 && p.k < 16) return "with few terms in a sum, adding up the lanes takes longest";
  return "";
}

template <class T> void append(KernelList& list) {
  const std::string tile = std::to_string(dot_rows(3)) + "x3";
  list.push_back({kernel_name("direct", Direction::dgrad, kDTypeOf<T>, tile), why_not, rather_not, direct_dgrad<T>});
}

}  // namespace

void append_direct_dgrad(KernelList& list) {
  append<bf16>(list);
#if !defined(__AVX512BF16__)
  append<float>(list);
  append<double>(list);
  append<f16>(list);
#endif
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
