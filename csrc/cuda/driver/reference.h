// Convolution as its formula has it, one element of the result at a time, in double: what the driver compares kernels
// with.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../../conv_problem.h"

namespace cnnkern::cuda {

using Index = std::array<int64_t, 4>;

// Dense: [n][h][w][c] of an image, [k][r][s][c] of filters.
struct Tensor {
  Index size{};
  std::vector<double> values;

  Tensor() = default;
  explicit Tensor(const Index& size) : size(size), values(static_cast<size_t>(size[0] * size[1] * size[2] * size[3])) {}
  int64_t elements() const { return static_cast<int64_t>(values.size()); }
  // The maps of a pixel; null in the padding.
  const double* maps(int64_t i, int64_t j, int64_t k) const {
    if (j < 0 || j >= size[1] || k < 0 || k >= size[2]) return nullptr;
    return &values[static_cast<size_t>(((i * size[1] + j) * size[2] + k) * size[3])];
  }
  Index index(int64_t element) const {
    return {element / (size[3] * size[2] * size[1]), element / (size[3] * size[2]) % size[1],
            element / size[3] % size[2], element % size[3]};
  }
};

inline Index x_size(const ConvProblem& p) { return {p.n, p.h, p.w, p.c}; }
inline Index w_size(const ConvProblem& p) { return {p.k, p.r, p.s, p.c_per_group()}; }
inline Index y_size(const ConvProblem& p) { return {p.n, p.p(), p.q(), p.k}; }
inline Index result_size(const ConvProblem& p) {
  return p.direction == Direction::fprop ? y_size(p) : p.direction == Direction::dgrad ? x_size(p) : w_size(p);
}

inline double activate_exactly(double v, Activation activation, double alpha) {
  switch (activation) {
    case Activation::none: return v;
    case Activation::relu: return std::max(v, 0.0);
    case Activation::relu6: return std::min(std::max(v, 0.0), 6.0);
    case Activation::leaky_relu: return v > 0 ? v : v * alpha;
    case Activation::elu: return v > 0 ? v : alpha * std::expm1(v);
    case Activation::hardswish: return v * std::min(std::max(v + 3, 0.0), 6.0) / 6;
    case Activation::silu: return v / (1 + std::exp(-v));
    case Activation::sigmoid: return 1 / (1 + std::exp(-v));
    case Activation::tanh: return std::tanh(v);
  }
  return v;
}

// The operands of a problem; of an absent one there are no values.
struct ExactOperands {
  Tensor x, w, y, residual;  // y: dy of a gradient
  std::vector<double> scale, shift, x_scale, x_shift;
};

class Reference {
 public:
  Reference(const ConvProblem& problem, const ExactOperands& operands) : p_(problem), o_(operands), x_(operands.x) {
    if (p_.direction == Direction::dgrad) return;
    for (int64_t i = 0; i < x_.elements(); ++i) {
      double& v = x_.values[static_cast<size_t>(i)];
      v = affine(v, i % p_.c, o_.x_scale, o_.x_shift, 0, p_.prologue.activation, p_.prologue.alpha);
    }
  }

  double operator()(const Index& at) const {
    switch (p_.direction) {
      case Direction::fprop: return fprop(at);
      case Direction::dgrad: return dgrad(at);
      case Direction::wgrad: break;
    }
    return wgrad(at);
  }
  double dbias(int64_t k) const {
    double sum = 0;
    for (int64_t i = k; i < o_.y.elements(); i += p_.k) sum += o_.y.values[static_cast<size_t>(i)];
    return sum;
  }

 private:
  static double affine(double v, int64_t map, const std::vector<double>& scale, const std::vector<double>& shift,
                       double residual, Activation activation, double alpha) {
    if (!scale.empty()) v *= scale[static_cast<size_t>(map)];
    if (!shift.empty()) v += shift[static_cast<size_t>(map)];
    return activate_exactly(v + residual, activation, alpha);
  }
  double fprop(const Index& at) const {
    const auto [n, p, q, k] = at;
    const int64_t c_per_group = p_.c_per_group(), first = k / p_.k_per_group() * c_per_group;
    double sum = 0;
    for (int64_t r = 0; r < p_.r; ++r) {
      for (int64_t s = 0; s < p_.s; ++s) {
        const int64_t h = p * p_.stride_h - p_.pad_top + r * p_.dilation_h;
        const int64_t w = q * p_.stride_w - p_.pad_left + s * p_.dilation_w;
        const double *x = x_.maps(n, h, w), *weights = o_.w.maps(k, r, s);
        for (int64_t c = 0; x && c < c_per_group; ++c) sum += x[first + c] * weights[c];
      }
    }
    const double residual = p_.epilogue.residual ? o_.residual.maps(n, p, q)[k] : 0;
    return affine(sum, k, o_.scale, o_.shift, residual, p_.epilogue.activation, p_.epilogue.alpha);
  }

  double dgrad(const Index& at) const {
    const auto [n, h, w, c] = at;
    const int64_t k_per_group = p_.k_per_group(), first = c / p_.c_per_group() * k_per_group;
    double sum = 0;
    for (int64_t r = 0; r < p_.r; ++r) {
      for (int64_t s = 0; s < p_.s; ++s) {
        const int64_t p = h + p_.pad_top - r * p_.dilation_h, q = w + p_.pad_left - s * p_.dilation_w;
        if (p < 0 || q < 0 || p % p_.stride_h || q % p_.stride_w) continue;
        const double* dy = o_.y.maps(n, p / p_.stride_h, q / p_.stride_w);
        for (int64_t k = first; dy && k < first + k_per_group; ++k) {
          sum += dy[k] * o_.w.maps(k, r, s)[c % p_.c_per_group()];
        }
      }
    }
    return sum;
  }

  double wgrad(const Index& at) const {
    const auto [k, r, s, c] = at;
    const int64_t map = k / p_.k_per_group() * p_.c_per_group() + c;
    double sum = 0;
    for (int64_t n = 0; n < p_.n; ++n) {
      for (int64_t p = 0; p < p_.p(); ++p) {
        const int64_t h = p * p_.stride_h - p_.pad_top + r * p_.dilation_h;
        for (int64_t q = 0; q < p_.q(); ++q) {
          const int64_t w = q * p_.stride_w - p_.pad_left + s * p_.dilation_w;
          if (const double* x = x_.maps(n, h, w)) sum += x[map] * o_.y.maps(n, p, q)[k];
        }
      }
    }
    return sum;
  }

  const ConvProblem& p_;
  const ExactOperands& o_;
  Tensor x_;  // behind the prologue
};

}  // namespace cnnkern::cuda
