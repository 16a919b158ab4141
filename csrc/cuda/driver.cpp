// Runs kernels on problems and compares what they write with the formula, without Python and without torch:
//
//   driver [--list] [--ask] [--kernel NAME] [--real] [--offset N] [--narrow] [--tf32] [--capability N] [--seed N] [--time]
//          [PROBLEM...]
//
//   --list        prints every kernel's name, and is all
//   --ask         prints what kernels answer, and runs none
//   --kernel      only kernels in whose name this occurs
//   --real        random numbers, and a bound on rounding; else small integers, whose sums are exact, and equality
//   --offset      elements between an aligned address and each operand
//   --narrow      scales and shifts have the tensors' type
//   --tf32        float may be multiplied as TF32
//   --capability  of the GPU; this one's if not given
//   --seed        of the numbers and, in the host build, of the order in which threads run
//   --time        the median time of a call as well
//
// Problems are strings as csrc/conv_problem.h has them. None: a line each from standard input, where the name of a kernel,
// or a part of it, may follow. Every kernel of a problem's direction and dtype that does not refuse is run. What it is not
// to write is checked to be as it was: operands, gaps between pixels, and a zone around each tensor. The exit status is 1 if
// anything was wrong.
#include <primitives/device.h>
#include <primitives/numeric.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernel_list.h"
#include "reference.h"

#if defined(CNNKERN_SIMT)
#include "simt.h"
#endif

namespace cnnkern::cuda {
namespace {

struct Options {
  bool list = false, ask = false, real = false, narrow = false, time = false;
  int64_t offset = 0;  // elements between an aligned address and each operand
  uint64_t seed = 0;
  std::string kernel;
  Flags flags;
  std::vector<std::string> problems;
};

// --- buffers ----------------------------------------------------------------------------------------------------------

double read_element(const std::byte* from, DType dtype) {
  if (dtype == DType::f32) return *reinterpret_cast<const float*>(from);
  if (dtype == DType::bf16) return to_float(*reinterpret_cast<const bf16*>(from));
  return to_float(*reinterpret_cast<const f16*>(from));
}
void write_element(std::byte* to, double v, DType dtype) {
  if (dtype == DType::f32) *reinterpret_cast<float*>(to) = static_cast<float>(v);
  else if (dtype == DType::bf16) *reinterpret_cast<bf16*>(to) = from_float<bf16>(static_cast<float>(v));
  else *reinterpret_cast<f16*>(to) = from_float<f16>(static_cast<float>(v));
}
double rounded(double v, DType dtype) {
  std::byte bytes[4];
  write_element(bytes, v, dtype);
  return read_element(bytes, dtype);
}

// Rows of `row` elements, `stride` apart, on the device, in the midst of memory that is not to be touched. What nobody has
// put there is NaN.
class Buffer {
 public:
  Buffer(DType dtype, int64_t rows, int64_t row, int64_t stride, int64_t offset)
      : dtype_(dtype),
        row_(row),
        stride_(stride),
        begin_(kZone + static_cast<size_t>(offset) * size()),
        end_(begin_ + (rows ? static_cast<size_t>((rows - 1) * stride + row) * size() : 0)),
        host_(end_ + kZone, std::byte{0xff}) {
    device_ = static_cast<std::byte*>(allocate(host_.size()));
  }
  ~Buffer() {
    allow(device_, host_.size());
    release(device_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void fill(const std::vector<double>& values) {
    for (size_t i = 0; i < values.size(); ++i) write_element(&host_[place(static_cast<int64_t>(i))], values[i], dtype_);
  }
  // To the device; returns where the first element is there.
  void* send() {
    allow(device_, host_.size());
    upload(device_, host_.data(), host_.size());
    forbid(device_, begin_);
    forbid(device_ + end_, host_.size() - end_);
    return device_ + begin_;
  }
  // From the device: into `now_`, to be looked at.
  void fetch() {
    allow(device_, host_.size());
    now_.resize(host_.size());
    download(now_.data(), device_, host_.size());
  }
  double result(int64_t element) const { return read_element(&now_[place(element)], dtype_); }
  // Whether bytes that are no elements, or any at all, are not what was sent.
  bool touched(bool elements_too) const {
    for (size_t i = 0; i < host_.size(); ++i) {
      const bool element = i >= begin_ && i < end_ && static_cast<int64_t>((i - begin_) / size()) % stride_ < row_;
      if (now_[i] != host_[i] && (elements_too || !element)) return true;
    }
    return false;
  }

 private:
  static constexpr size_t kZone = 256;
  size_t size() const { return static_cast<size_t>(kDTypeSizes[static_cast<int>(dtype_)]); }
  size_t place(int64_t element) const {
    return begin_ + static_cast<size_t>(element / row_ * stride_ + element % row_) * size();
  }

  DType dtype_;
  int64_t row_, stride_;
  size_t begin_, end_;
  std::vector<std::byte> host_, now_;
  std::byte* device_ = nullptr;
};

// --- one problem --------------------------------------------------------------------------------------------------------

class Values {
 public:
  Values(const Options& options, DType dtype) : real_(options.real), dtype_(dtype), random_(options.seed + 1) {}
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

ExactOperands make_operands(const ConvProblem& p, const Options& options) {
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

int64_t gemm_k(const ConvProblem& p) {
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

Tolerance tolerance(const ConvProblem& p, const Options& options) {
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

Expected make_expected(const ConvProblem& p, const ExactOperands& o) {
  constexpr double kMostOperations = 2e9;
  const Reference reference(p, o);
  const Tensor shape(result_size(p));
  const double each = 2.0 * static_cast<double>(gemm_k(p));
  const auto step = static_cast<int64_t>(std::max(1.0, static_cast<double>(shape.elements()) * each / kMostOperations));
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

std::string text(const Index& at) {
  return "[" + std::to_string(at[0]) + ", " + std::to_string(at[1]) + ", " + std::to_string(at[2]) + ", " +
         std::to_string(at[3]) + "]";
}

// Everything that a problem's kernels are run with.
class Bench {
 public:
  Bench(const ConvProblem& problem, const Options& options)
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
    const bool weights = p_.direction == Direction::wgrad;
    Buffer workspace(DType::f32, 1, kernel.workspace_bytes ? (kernel.workspace_bytes(p_) + 3) / 4 : 0, 1, 0);
    Buffer dbias(DType::f32, 1, p_.k, 1, 0);
    const Operands o{.x = send(x_),
                     .w = send(w_),
                     .y = send(y_),
                     .scale = send(scale_),
                     .shift = send(shift_),
                     .x_scale = send(x_scale_),
                     .x_shift = send(x_shift_),
                     .residual = send(residual_),
                     .dbias = weights ? static_cast<float*>(dbias.send()) : nullptr,
                     .workspace = workspace.send(),
                     .residual_pixel_stride = p_.y_stride(),
                     .narrow = {options_.narrow, options_.narrow, options_.narrow, options_.narrow}};
    kernel.run(o, {p_, kernel.name});
    if (options_.time) seconds_ = median_seconds([&](void* stream) { kernel.run(o, {p_, kernel.name, 0, stream}); });
    for (const auto& buffer : buffers_) {
      buffer->fetch();
      if (buffer.get() != result() && buffer->touched(true)) return "an operand is written";
    }
    workspace.fetch();
    if (workspace.touched(false)) return "memory around the workspace is written";
    if (result()->touched(false)) return "memory around the result is written";
    if (weights) {
      dbias.fetch();
      if (dbias.touched(false)) return "memory around dbias is written";
    }
    return compare(*result(), dbias);
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
    for (size_t k = 0; k < expected_.dbias.size(); ++k) {
      const double found = dbias.result(static_cast<int64_t>(k)), wanted = expected_.dbias[k];
      if (!near(found, wanted, DType::f32)) note("dbias [" + std::to_string(k) + "]", found, wanted);
    }
    return wrong ? first + " (" + std::to_string(wrong) + " wrong of " + std::to_string(expected_.elements.size()) + ")"
                 : "";
  }

  const ConvProblem& p_;
  const Options& options_;
  const ExactOperands exact_;
  const Expected expected_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  Buffer *x_, *w_, *y_, *residual_, *scale_, *shift_, *x_scale_, *x_shift_;
  double seconds_ = 0;
};

// --- the command line ---------------------------------------------------------------------------------------------------

bool serves(const Kernel& kernel, const ConvProblem& p) {
  const std::string part = "_" + std::string(kDirectionNames[static_cast<int>(p.direction)]) + "_" +
                           std::string(kDTypeNames[static_cast<int>(p.dtype)]) + "_nhwc_";
  return kernel.name.find(part) != std::string::npos;
}

double bytes(const ConvProblem& p) {
  const int64_t elements = p.n * p.h * p.w * p.c + p.n * p.p() * p.q() * p.k * (p.epilogue.residual ? 2 : 1) +
                           p.k * p.r * p.s * p.c_per_group();
  return static_cast<double>(elements * kDTypeSizes[static_cast<int>(p.dtype)]);
}

void print_speed(const ConvProblem& p, double seconds) {
  std::printf(" %.2f us, %.0f GB/s, %.2f TFLOP/s", seconds * 1e6, bytes(p) / seconds / 1e9, p.flops() / seconds / 1e12);
}

// Returns whether all was right.
bool run_problem(const std::string& problem, const std::string& part_of_name, const Options& options) {
  const ConvProblem p = ConvProblem::parse(problem);
  Flags flags = options.flags;
  flags.unaligned = options.offset * kDTypeSizes[static_cast<int>(p.dtype)] % 16 != 0;
  std::unique_ptr<Bench> bench;
  bool right = true;
  for (const Kernel& kernel : kernels()) {
    if (kernel.name.find(part_of_name) == std::string::npos || !serves(kernel, p)) continue;
    std::printf("%s %s ", kernel.name.c_str(), problem.c_str());
    std::fflush(stdout);  // a sanitizer may end the program
    if (const std::string why = kernel.why_not(p, flags); !why.empty() || options.ask) {
      std::printf("%s%s\n", why.empty() ? "accepted" : "refused: ", why.c_str());
      continue;
    }
    if (!bench) bench = std::make_unique<Bench>(p, options);
    std::string wrong;
    try {
      wrong = bench->check(kernel);
    } catch (const std::exception& error) {
      wrong = std::string("error: ") + error.what();
    }
    std::printf("%s%s", wrong.empty() ? "ok" : "WRONG ", wrong.c_str());
    if (options.time && wrong.empty()) print_speed(p, bench->seconds());
    std::printf("\n");
    right = right && wrong.empty();
  }
  return right;
}

Options parse(int argc, char** argv) {
  Options o;
  o.flags.capability = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&] {
      if (++i == argc) throw std::invalid_argument(argument + " needs a value");
      return std::string(argv[i]);
    };
    if (argument == "--list") o.list = true;
    else if (argument == "--ask") o.ask = true;
    else if (argument == "--kernel") o.kernel = value();
    else if (argument == "--real") o.real = true;
    else if (argument == "--narrow") o.narrow = true;
    else if (argument == "--time") o.time = true;
    else if (argument == "--tf32") o.flags.tf32 = true;
    else if (argument == "--offset") o.offset = std::stoll(value());
    else if (argument == "--seed") o.seed = std::stoull(value());
    else if (argument == "--capability") o.flags.capability = std::stoi(value());
    else if (argument.starts_with("--")) throw std::invalid_argument("unknown option " + argument);
    else o.problems.push_back(argument);
  }
  if (o.time && !kOnGpu) throw std::invalid_argument("--time needs a GPU");
  if (!o.flags.capability && !o.list) o.flags.capability = capability_of_device();
  return o;
}

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  if (options.list) {
    for (const Kernel& kernel : kernels()) std::printf("%s\n", kernel.name.c_str());
    return 0;
  }
#if defined(CNNKERN_SIMT)
  simt::set_seed(options.seed);
#endif
  bool right = true;
  for (const std::string& problem : options.problems) right &= run_problem(problem, options.kernel, options);
  if (options.problems.empty()) {
    for (std::string line; std::getline(std::cin, line);) {
      const size_t blank = std::min(line.find(' '), line.size());
      const std::string kernel = line.substr(std::min(blank + 1, line.size()));
      if (blank) right &= run_problem(line.substr(0, blank), kernel.empty() ? options.kernel : kernel, options);
    }
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace cnnkern::cuda

int main(int argc, char** argv) {
  try {
    return cnnkern::cuda::main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "driver: %s\n", error.what());
    return 2;
  }
}
