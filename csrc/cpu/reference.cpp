// The convolution as it is written down, in plain loops that accumulate in double: what every other kernel is checked
// against. Sums over nothing (no maps, no pixels) are zero, so it also serves the problems with empty operands.
//   fprop  y[n,p,q,k]  = act(scale[k] * sum(c,r,s) x[n, p*u+r*l-pad, q*u+s*l-pad, c] * w[k,r,s,c] + shift[k] + residual)
//   dgrad  dx[n,h,w,c] = sum(k,r,s) dy[n,p,q,k] * w[k,r,s,c]  over the p, q that read this h, w
//   wgrad  dw[k,r,s,c] = sum(n,p,q) dy[n,p,q,k] * x[n,h,w,c],  dbias[k] = sum(n,p,q) dy[n,p,q,k]
#include <cmath>
#include <vector>

#include "../kernel.h"
#include "naming.h"
#include "threads.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

// The tap r of an axis reads h = p * stride - pad + r * dilation.
struct Axis {
  int64_t in, out, taps, stride, pad, dilation;

  // -1 where the tap is in the padding.
  int64_t input_of(int64_t output, int64_t tap) const {
    const int64_t position = output * stride - pad + tap * dilation;
    return position >= 0 && position < in ? position : -1;
  }
  // The output that reads `input` through this tap, -1 if there is none.
  int64_t output_of(int64_t input, int64_t tap) const {
    const int64_t scaled = input + pad - tap * dilation;
    if (scaled < 0 || scaled % stride) return -1;
    return scaled / stride < out ? scaled / stride : -1;
  }
};

Axis vertical(const ConvProblem& p) { return {p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h}; }
Axis horizontal(const ConvProblem& p) { return {p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w}; }

double activate(double v, const Epilogue& epilogue) {
  switch (epilogue.activation) {
    case Activation::none: return v;
    case Activation::relu: return v < 0 ? 0 : v;
    case Activation::relu6: return v < 0 ? 0 : v > 6 ? 6 : v;
    case Activation::leaky_relu: return v < 0 ? v * epilogue.alpha : v;
    case Activation::elu: return v < 0 ? epilogue.alpha * std::expm1(v) : v;
    case Activation::hardswish: return v <= -3 ? 0 : v >= 3 ? v : v * (v + 3) / 6;
    case Activation::silu: return v / (1 + std::exp(-v));
    case Activation::sigmoid: return 1 / (1 + std::exp(-v));
    case Activation::tanh: return std::tanh(v);
  }
  return v;
}

template <class T> T rounded(double v) { return from_acc<T>(static_cast<acc_t<T>>(v)); }

template <class T>
void fprop(const ConvProblem& p, const Operands& operands) {
  const T *x = static_cast<const T*>(operands.x), *w = static_cast<const T*>(operands.w);
  const T* residual = static_cast<const T*>(operands.residual);
  const auto* scale = static_cast<const acc_t<T>*>(operands.scale);
  const auto* shift = static_cast<const acc_t<T>*>(operands.shift);
  T* y = static_cast<T*>(operands.y);
  const Axis rows = vertical(p), columns = horizontal(p);
  parallel_for(p.n * rows.out, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * columns.out * p.k; i < end * columns.out * p.k; ++i) {
      const int64_t k = i % p.k, pixel = i / p.k;
      const int64_t q = pixel % columns.out, row = pixel / columns.out % rows.out, n = pixel / columns.out / rows.out;
      const int64_t first_map = k / p.k_per_group() * p.c_per_group();
      double sum = 0;
      for (int64_t r = 0; r < p.r; ++r) {
        for (int64_t s = 0; s < p.s; ++s) {
          const int64_t h = rows.input_of(row, r), v = columns.input_of(q, s);
          if (h < 0 || v < 0) continue;
          const T* maps = x + ((n * p.h + h) * p.w + v) * p.x_stride() + first_map;
          const T* taps = w + ((k * p.r + r) * p.s + s) * p.c_per_group();
          for (int64_t c = 0; c < p.c_per_group(); ++c) sum += double{to_acc(maps[c])} * to_acc(taps[c]);
        }
      }
      if (scale) sum *= scale[k];
      if (shift) sum += shift[k];
      if (residual) sum += to_acc(residual[pixel * operands.residual_pixel_stride + k]);
      y[pixel * p.y_stride() + k] = rounded<T>(activate(sum, p.epilogue));
    }
  });
}

template <class T>
void dgrad(const ConvProblem& p, const Operands& operands) {
  const T *dy = static_cast<const T*>(operands.y), *w = static_cast<const T*>(operands.w);
  T* dx = static_cast<T*>(operands.x);
  const Axis rows = vertical(p), columns = horizontal(p);
  parallel_for(p.n * p.h, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * p.w * p.c; i < end * p.w * p.c; ++i) {
      const int64_t c = i % p.c, pixel = i / p.c;
      const int64_t v = pixel % p.w, h = pixel / p.w % p.h, n = pixel / p.w / p.h;
      const int64_t group = c / p.c_per_group(), map = c % p.c_per_group();
      double sum = 0;
      for (int64_t r = 0; r < p.r; ++r) {
        for (int64_t s = 0; s < p.s; ++s) {
          const int64_t row = rows.output_of(h, r), q = columns.output_of(v, s);
          if (row < 0 || q < 0) continue;
          const T* gradients = dy + ((n * rows.out + row) * columns.out + q) * p.y_stride();
          for (int64_t k = group * p.k_per_group(); k < (group + 1) * p.k_per_group(); ++k) {
            sum += double{to_acc(gradients[k])} * to_acc(w[((k * p.r + r) * p.s + s) * p.c_per_group() + map]);
          }
        }
      }
      dx[pixel * p.x_stride() + c] = rounded<T>(sum);
    }
  });
}

template <class T>
void wgrad(const ConvProblem& p, const Operands& operands) {
  const T *x = static_cast<const T*>(operands.x), *dy = static_cast<const T*>(operands.y);
  T* dw = static_cast<T*>(operands.w);
  auto* dbias = static_cast<acc_t<T>*>(operands.dbias);
  const Axis rows = vertical(p), columns = horizontal(p);
  const int64_t pixels = p.n * rows.out * columns.out, maps = p.c_per_group();
  parallel_for(p.k, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(maps);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first_map = k / p.k_per_group() * maps;
      for (int64_t tap = 0; tap < p.r * p.s; ++tap) {
        sums.assign(maps, 0);
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
          const int64_t h = rows.input_of(pixel / columns.out % rows.out, tap / p.s);
          const int64_t v = columns.input_of(pixel % columns.out, tap % p.s);
          if (h < 0 || v < 0) continue;
          const double gradient = to_acc(dy[pixel * p.y_stride() + k]);
          const T* from = x + ((pixel / columns.out / rows.out * p.h + h) * p.w + v) * p.x_stride() + first_map;
          for (int64_t c = 0; c < maps; ++c) sums[c] += gradient * to_acc(from[c]);
        }
        for (int64_t c = 0; c < maps; ++c) dw[(k * p.r * p.s + tap) * maps + c] = rounded<T>(sums[c]);
      }
      if (!dbias) continue;
      double sum = 0;
      for (int64_t pixel = 0; pixel < pixels; ++pixel) sum += to_acc(dy[pixel * p.y_stride() + k]);
      dbias[k] = static_cast<acc_t<T>>(sum);
    }
  });
}

std::string always(const ConvProblem&) { return {}; }

std::string only_by_name(const ConvProblem&) {
  return "the reference is there to check other kernels against and runs only when named";
}

}  // namespace

void append_reference(KernelList& list) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    with_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      const auto append = [&](Direction direction, void (*run)(const ConvProblem&, const Operands&)) {
        list.push_back({kernel_name("reference", direction, dtype, "any"), always, only_by_name, run});
      };
      append(Direction::fprop, fprop<T>);
      append(Direction::dgrad, dgrad<T>);
      append(Direction::wgrad, wgrad<T>);
    });
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
