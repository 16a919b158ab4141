// Direct input gradient for few input maps, such as those of the 3-channel stem of most networks.
//
//   dx[n,h,w,c] = sum over r,s,k of dy[n,p,q,k] * w[k,r,s,c],  p*sh = h + pt - r*dh,  q*sw = w + pl - s*dw
//
// A GEMM with c columns would leave most lanes of a vector empty, so k is in the lanes (microkernels/dot.h): a tile of
// pixels x c sums reads vectors of dy and of w. The pixels of a tile agree in w modulo the stride, so they have the same
// taps and read neighbouring columns of dy. In dense NHWC the taps of a filter row are then one run of memory, which
// fills the vectors where k is small. A pixel whose taps are not all inside dy is a tile of its own.
// w is packed once as [class of pixels][r][c][s][k]. Bound: FMA, 2*gemm_m*gemm_n*gemm_k flops.
#include "dot_rows.h"
#include "gemm_operands.h"
#include "implicit_gemm.h"
#include "naming.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

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
      std::vector<DotTap> dots;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t n = row / p_.h, h = row % p_.h, classes = std::min(p_.stride_w, p_.w);
        for (int64_t b = 0; b < classes; ++b) {
          const PixelClass& pixels = classes_[h % p_.stride_h * classes + b];
          rows_of(pixels).run(pixels.lattice, pixels.row_taps, n, h / p_.stride_h, 0, pixels.lattice.cols, dots);
        }
      }
    });
  }

 private:
  // Packs the weights of a class, and notes in its taps where theirs are.
  void pack(PixelClass& pixels, const T* w) {
    In* to = packed_ + pixels.panel;
    std::vector<Tap>& taps = pixels.lattice.taps;
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
    for (size_t t = 0; t < taps.size(); ++t)
      taps[t].offset = (t / pixels.row_taps * pixels.row_taps * p_.c + t % pixels.row_taps) * dy_.depth;
  }

  DotRows<In, In, T> rows_of(const PixelClass& pixels) const {
    return {.x = dy_.data,
            .in_h = p_.p(),
            .in_w = p_.q(),
            .x_pixel_stride = dy_.stride,
            .depth = dy_.depth,
            .w = packed_ + pixels.panel,
            .w_row_stride = pixels.row_taps * dy_.depth,
            .y = dx_,
            .out_h = p_.h,
            .out_w = p_.w,
            .y_pixel_stride = p_.x_stride(),
            .columns = static_cast<int>(p_.c),
            .epilogue = nullptr};
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
