// One problem, its operands and what is expected of its kernels.
#pragma once

#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../kernel.h"
#include "buffer.h"
#include "reference.h"

namespace cnnkern::cuda {

struct TrialOptions {
  bool real = false, narrow = false, time = false;
  int64_t offset = 0;
  uint64_t seed = 0;
  Flags flags;
};

class Values {
 public:
  Values(const TrialOptions& options, DType dtype) : real_(options.real), dtype_(dtype), random_(options.seed + 1) {}
  std::vector<double> operator()(int64_t count, double spread, DType dtype) {
    std::vector<double> values(static_cast<size_t>(count));
    for (double& v : values)
      v = real_ ? rounded(normal_(random_) * spread, dtype) : static_cast<double>(random_() % 5) - 2;
    return values;
  }
  Tensor operator()(const Index& size, double spread = 1) {
    Tensor tensor(size);
    tensor.values = (*this)(tensor.elements(), spread, dtype_);
    return tensor;
  }

 private:
  bool real_;
  DType dtype_;
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
};

inline ExactOperands make_operands(const ConvProblem& p, const TrialOptions& options) {
  Values values(options, p.dtype);
  const DType maps = options.narrow ? p.dtype : DType::f32;
  const bool forward = p.direction == Direction::fprop;
  ExactOperands o;
  o.x = values(x_size(p));
  o.w = values(w_size(p), 1 / std::sqrt(static_cast<double>(p.r * p.s * p.c_per_group())));
  o.y = values(y_size(p));
  if (forward && p.epilogue.residual) o.residual = values(y_size(p));
  if (forward && p.epilogue.scale) o.scale = values(p.k, 1, maps);
  if (forward && p.epilogue.shift) o.shift = values(p.k, 1, maps);
  if (p.prologue.scale) o.x_scale = values(p.c, 1, maps);
  if (p.prologue.shift) o.x_shift = values(p.c, 1, maps);
  return o;
}

inline int64_t gemm_k(const ConvProblem& p) {
  switch (p.direction) {
    case Direction::fprop: return p.r * p.s * p.c_per_group();
    case Direction::dgrad: return p.r * p.s * p.k_per_group();
    case Direction::wgrad: break;
  }
  return p.n * p.p() * p.q();
}

// The largest errors that rounding explains: of a sum, and of the elements that it is made of and becomes. Both 0 where
// everything is exact.
struct Tolerance { double sum, element; };

inline Tolerance tolerance(const ConvProblem& p, const TrialOptions& options) {
  const auto exact = [](Activation a) {
    return a == Activation::none || a == Activation::relu || a == Activation::relu6;
  };
  if (!options.real && exact(p.epilogue.activation) && exact(p.prologue.activation)) return {};
  constexpr double kEps[] = {0x1p-23, 0x1p-52, 0x1p-7, 0x1p-10}, kEpsTf32 = 0x1p-9;
  const bool tf32 = options.flags.tf32 && p.dtype == DType::f32;
  return {4 * kEps[0] * std::sqrt(static_cast<double>(gemm_k(p))), tf32 ? kEpsTf32 : kEps[static_cast<int>(p.dtype)]};
}

// What is expected of a problem's kernels: all of the result or, where that would take long, an even sample of it.
struct Expected {
  std::vector<int64_t> elements;
  std::vector<double> values, dbias;
  double root_mean_square = 0;
};

inline Expected make_expected(const ConvProblem& p, const ExactOperands& o) {
  constexpr double kMostOperations = 5e8;
  const Reference reference(p, o);
  const Tensor shape(result_size(p));
  const double each = 2.0 * static_cast<double>(gemm_k(p));
  auto step = static_cast<int64_t>(std::max(1.0, static_cast<double>(shape.elements()) * each / kMostOperations));
  while (std::gcd(step, shape.size[3]) != 1) ++step;  // so that it meets every map
  Expected expected;
  for (int64_t i = 0; i < shape.elements(); i += step) {
    expected.elements.push_back(i);
    expected.values.push_back(reference(shape.index(i)));
    expected.root_mean_square += expected.values.back() * expected.values.back();
  }
  expected.root_mean_square = std::sqrt(expected.root_mean_square / static_cast<double>(expected.elements.size()));
  if (p.direction == Direction::wgrad) {
    for (int64_t k = 0; k < p.k; ++k) expected.dbias.push_back(reference.dbias(k));
  }
  return expected;
}

inline std::string text(const Index& at) {
  return "[" + std::to_string(at[0]) + ", " + std::to_string(at[1]) + ", " + std::to_string(at[2]) + ", " +
         std::to_string(at[3]) + "]";
}

// Everything that a problem's kernels are run with.
class Trial {
 public:
  Trial(const ConvProblem& problem, const TrialOptions& options)
      : p_(problem),
        options_(options),
        exact_(make_operands(problem, options)),
        expected_(make_expected(problem, exact_)) {
    const int64_t pixels = p_.n * p_.h * p_.w, out = p_.n * p_.p() * p_.q();
    const DType maps = options.narrow ? p_.dtype : DType::f32;
    x_ = add(p_.dtype, pixels, p_.c, p_.x_stride(), exact_.x.values, Direction::dgrad);
    w_ = add(p_.dtype, p_.k, p_.r * p_.s * p_.c_per_group(), 0, exact_.w.values, Direction::wgrad);
    y_ = add(p_.dtype, out, p_.k, p_.y_stride(), exact_.y.values, Direction::fprop);
    residual_ = add(p_.dtype, out, p_.k, p_.y_stride(), exact_.residual.values);
    scale_ = add(maps, 1, p_.k, 0, exact_.scale);
    shift_ = add(maps, 1, p_.k, 0, exact_.shift);
    x_scale_ = add(maps, 1, p_.c, 0, exact_.x_scale);
    x_shift_ = add(maps, 1, p_.c, 0, exact_.x_shift);
  }

  // Runs a kernel; returns "" or what is wrong.
  std::string check(const Kernel& kernel) {
    const int64_t scratch = kernel.workspace_bytes ? (kernel.workspace_bytes(p_) + 3) / 4 : 0;
    Buffer workspace(DType::f32, 1, scratch, scratch, 0);
    Buffer dbias(DType::f32, 1, p_.k, p_.k, 0);
    const int64_t partials = options_.seed % 2 == 0 ? partials_of(kernel, p_) : 0;  // they are asked for by even seeds
    Buffer statistics(DType::f32, 1, partials * 3 * p_.k, partials * 3 * p_.k, 0);
    const Operands o{.x = send(x_),
                     .w = send(w_),
                     .y = send(y_),
                     .scale = send(scale_),
                     .shift = send(shift_),
                     .x_scale = send(x_scale_),
                     .x_shift = send(x_shift_),
                     .residual = send(residual_),
                     .dbias = static_cast<float*>(with_dbias() ? dbias.send() : nullptr),
                     .statistics = static_cast<float*>(partials ? statistics.send() : nullptr),
                     .workspace = scratch ? workspace.send() : nullptr,
                     .residual_pixel_stride = p_.y_stride(),
                     .narrow = {options_.narrow, options_.narrow, options_.narrow, options_.narrow}};
    kernel.run(o, {p_, kernel.name});
    if (options_.time) seconds_ = median_seconds([&](void* stream) { kernel.run(o, {p_, kernel.name, 0, stream}); });
    for (const auto& buffer : buffers_) {
      buffer->fetch();
      if (buffer.get() != result() && buffer->touched(true)) return "an operand is written";
    }
    if (result()->touched(false)) return "memory around the result is written";
    if (scratch && (workspace.fetch(), workspace.touched(false))) return "memory around the workspace is written";
    if (with_dbias() && (dbias.fetch(), dbias.touched(false))) return "memory around dbias is written";
    if (const std::string wrong = compare(*result(), dbias); !wrong.empty() || !partials) return wrong;
    if (statistics.fetch(), statistics.touched(false)) return "memory around the statistics is written";
    return compare_statistics(*result(), statistics, partials);
  }
  double seconds() const { return seconds_; }

 private:
  Buffer* add(DType dtype, int64_t rows, int64_t row, int64_t stride, const std::vector<double>& values,
              Direction written = Direction{-1}) {
    if (values.empty()) return nullptr;
    buffers_.push_back(std::make_unique<Buffer>(dtype, rows, row, stride ? stride : row, options_.offset));
    if (p_.direction != written) buffers_.back()->fill(values);
    return buffers_.back().get();
  }
  // A gradient of the bias is asked for by even seeds.
  bool with_dbias() const { return p_.direction == Direction::wgrad && options_.seed % 2 == 0; }
  void* send(Buffer* buffer) { return buffer ? buffer->send() : nullptr; }
  Buffer* result() const { return p_.direction == Direction::fprop ? y_ : p_.direction == Direction::dgrad ? x_ : w_; }

  bool near(double found, double wanted, DType dtype) const {
    const auto [sum, element] = tolerance(p_, options_);
    if (sum == 0) return found == rounded(wanted, dtype);
    const double typical = expected_.root_mean_square;
    return std::abs(found - wanted) <= sum * typical + element * std::max(4 * typical, std::abs(wanted));  // not a NaN
  }
  std::string compare(const Buffer& result, const Buffer& dbias) const {
    size_t wrong = 0;
    std::string first;
    const auto note = [&](const std::string& at, double found, double wanted) {
      if (wrong++ == 0) first = "at " + at + ": " + std::to_string(found) + ", not " + std::to_string(wanted);
    };
    for (size_t i = 0; i < expected_.elements.size(); ++i) {
      const int64_t element = expected_.elements[i];
      const double found = result.result(element), wanted = expected_.values[i];
      if (!near(found, wanted, p_.dtype)) note(text(Tensor(result_size(p_)).index(element)), found, wanted);
    }
    for (size_t k = 0; with_dbias() && k < expected_.dbias.size(); ++k) {
      const double found = dbias.result(static_cast<int64_t>(k)), wanted = expected_.dbias[k];
      if (!near(found, wanted, DType::f32)) note("dbias [" + std::to_string(k) + "]", found, wanted);
    }
    return wrong ? first + " (" + std::to_string(wrong) + " wrong of " + std::to_string(expected_.elements.size()) + ")"
                 : "";
  }

  // Statistics of the values that were written: what the partials, each of some of the pixels, come to together.
  std::string compare_statistics(const Buffer& y, const Buffer& statistics, int64_t partials) const {
    const int64_t pixels = p_.n * p_.p() * p_.q();
    for (int64_t k = 0; k < p_.k; ++k) {
      double count = 0, found_mean = 0, found_m2 = 0, mean = 0, m2 = 0, square = 0;
      for (int64_t i = 0; i < partials; ++i) {
        const auto found = [&](int64_t which) { return statistics.result((i * 3 + which) * p_.k + k); };
        if (!(found(0) >= 1)) return "a partial is of no pixels";
        const double difference = found(1) - found_mean, share = found(0) / (count += found(0));
        found_mean += difference * share;
        found_m2 += found(2) + difference * difference * (count * share) * (1 - share);
      }
      if (count != static_cast<double>(pixels)) return "partials are not of each pixel once";
      for (int64_t pixel = 0; pixel < pixels; ++pixel) mean += y.result(pixel * p_.k + k) / count;
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        const double value = y.result(pixel * p_.k + k);
        m2 += (value - mean) * (value - mean);
        square += value * value;
      }
      const double eps = 0x1p-18, typical = std::sqrt(square / count);
      if (std::abs(found_mean - mean) > eps * typical || std::abs(found_m2 - m2) > eps * (m2 + eps * square))
        return "of map " + std::to_string(k) + " mean " + std::to_string(found_mean) + ", M2 " +
               std::to_string(found_m2) + ", not " + std::to_string(mean) + ", " + std::to_string(m2);
    }
    return "";
  }

  const ConvProblem& p_;
  const TrialOptions& options_;
  const ExactOperands exact_;
  const Expected expected_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  Buffer *x_, *w_, *y_, *residual_, *scale_, *shift_, *x_scale_, *x_shift_;
  double seconds_ = 0;
};

}  // namespace cnnkern::cuda
