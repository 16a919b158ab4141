#include "conv.h"

#include <algorithm>

#include "channels.h"
#include "kernel_list.h"
#include "memo.h"
#include "staging.h"
#include "tools.h"

namespace cnnkern::cpu {
namespace {

std::string sizes_text(const int64_t* sizes) {
  std::string text = "[";
  for (int i = 0; i < 4; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

void check_sizes(const Tensor4& tensor, std::array<int64_t, 4> expected, const char* name) {
  if (std::equal(expected.begin(), expected.end(), tensor.sizes)) return;
  fail(std::string(name) + " has sizes " + sizes_text(tensor.sizes) + " where " + sizes_text(expected.data()) +
       " are expected");
}

void check_dtype(const Tensor4& tensor, const Tensor4& first, const char* name) {
  if (tensor.torch_dtype != first.torch_dtype) fail(std::string(name) + " has another dtype than the others");
}

float alpha_of(Activation activation, float alpha) {
  return activation == Activation::leaky_relu || activation == Activation::elu ? alpha : 0;
}

std::array<int64_t, 4> y_sizes(const ConvProblem& p) { return {p.n, p.k, p.p(), p.q()}; }

// torch's rule for the memory format of y.
bool gives_channels_last(const Tensor4& x, const Tensor4& w) {
  return suggests_channels_last(x.sizes, x.strides) || suggests_channels_last(w.sizes, w.strides);
}

// Notes in the problem how x or y lies in memory.
void note_layout(const int64_t* sizes, const int64_t* strides, Layout& layout, int64_t& pixel_stride) {
  const int64_t stride = nhwc_pixel_stride(sizes, strides);
  layout = stride ? Layout::nhwc : Layout::nchw;
  pixel_stride = stride == sizes[1] ? 0 : stride;
}

WeightLayout weight_layout(const Tensor4& w) {
  return nhwc_pixel_stride(w.sizes, w.strides) == w.sizes[1] ? WeightLayout::krsc : WeightLayout::kcrs;
}

// Where an operand has no elements the plain loops do what is left to do: zeros, or the epilogue of zero.
const Kernel& kernel_for(const ConvProblem& problem, const Choice& choice, bool empty_operand) {
  const Kernel* named = choice.kernel.empty() ? nullptr : &kernel_named(choice.kernel);
  if (named) require(*named, problem);
  if (empty_operand) return reference_kernel(problem.direction, problem.dtype);
  return named ? *named : chosen_kernel(problem, choice.flags);
}

// Less than either is done, in 5 us or so, before a second thread has begun.
constexpr int64_t kSharedWork = 1 << 18;      // multiply-adds
constexpr int64_t kSharedElements = 1 << 15;  // of x, w and y together

bool is_shared(const ConvProblem& p) {
  const int64_t filter = p.r * p.s * p.c_per_group(), y = p.n * p.k * p.p() * p.q();
  return y * filter >= kSharedWork || p.n * p.c * p.h * p.w + p.k * filter + y >= kSharedElements;
}

void run(const Kernel& kernel, const ConvProblem& problem, const Operands& operands) {
  if (is_shared(problem)) return kernel.run(staged(problem), operands);
  const OnThisThread alone;
  kernel.run(staged(problem), operands);
}

void* stage(const Tensor4& tensor, Layout layout, DType dtype, Scratch slot) {
  return stage(tensor, layout == Layout::nhwc, element_size(dtype), slot);
}

// x as the kernel reads it: through the prologue, if there is one.
void* stage_x(const Tensor4& x, const PrologueTensors& tensors, const ConvProblem& problem) {
  if (problem.prologue == Prologue{}) return stage(x, problem.x_layout, problem.dtype, Scratch::x);
  void* t = scratch_bytes(Scratch::x, static_cast<size_t>(element_count(x.sizes)) * element_size(problem.dtype));
  double* room = scratch<double>(Scratch::channels, 2 * problem.c);
  const PrologueOperands operands{
      .x = stage(x, problem.x_layout, problem.dtype, Scratch::x),
      .x_pixel_stride = problem.x_stride(),
      .scale = channel_vector(tensors.scale, problem.c, problem.dtype, "x_scale", room),
      .shift = channel_vector(tensors.shift, problem.c, problem.dtype, "x_shift", room + problem.c),
      .t = t};
  tools().prologue(problem.prologue, problem.dtype, operands, problem.n * problem.h * problem.w, problem.c);
  return t;
}

// dy in NHWC, copied at most once, by the first kernel that needs it.
class StagedDy {
 public:
  explicit StagedDy(AtenTensorHandle handle) : tensor_(read_tensor(handle, "dy")) {}
  const Tensor4& tensor() const { return tensor_; }
  void* data(const ConvProblem& problem) {
    if (!data_) data_ = stage(tensor_, problem.y_layout, problem.dtype, Scratch::y);
    return data_;
  }

 private:
  Tensor4 tensor_;
  void* data_ = nullptr;
};

void* stage_weights(const Tensor4& w, const ConvProblem& problem) {
  return stage(w, problem.w_layout == WeightLayout::krsc, element_size(problem.dtype), Scratch::w);
}

void stage_residual(AtenTensorHandle handle, const Tensor4& x, const ConvProblem& problem, Operands& operands) {
  const Tensor4 residual = read_tensor(handle, "residual");
  check_sizes(residual, y_sizes(problem), "residual");
  check_dtype(residual, x, "residual");
  const int64_t pixel_stride = nhwc_pixel_stride(residual.sizes, residual.strides);
  operands.residual = stage(residual, pixel_stride, element_size(problem.dtype), Scratch::residual);
  operands.residual_pixel_stride = pixel_stride ? pixel_stride : problem.k;
}

}  // namespace

Epilogue epilogue_of(const EpilogueTensors& tensors) {
  return {tensors.activation, tensors.scale != nullptr, tensors.shift != nullptr, tensors.residual != nullptr,
          alpha_of(tensors.activation, tensors.alpha)};
}

Prologue prologue_of(const PrologueTensors& tensors) {
  return {tensors.activation, tensors.scale != nullptr, tensors.shift != nullptr,
          alpha_of(tensors.activation, tensors.alpha)};
}

Activation activation_named(std::string_view name) {
  for (size_t i = 0; i < std::size(kActivationNames); ++i) {
    if (kActivationNames[i] == name) return static_cast<Activation>(i);
  }
  throw std::runtime_error("no activation is named '" + std::string(name) + "'");
}

ConvProblem conv_problem(Direction direction, DType dtype, const int64_t* x_sizes, const int64_t* w_sizes,
                         const Geometry& geometry) {
  ConvProblem problem{.n = x_sizes[0],
                      .c = x_sizes[1],
                      .h = x_sizes[2],
                      .w = x_sizes[3],
                      .k = w_sizes[0],
                      .r = w_sizes[2],
                      .s = w_sizes[3],
                      .stride_h = geometry.stride[0],
                      .stride_w = geometry.stride[1],
                      .pad_top = geometry.padding[0],
                      .pad_left = geometry.padding[1],
                      .pad_bottom = geometry.padding[2],
                      .pad_right = geometry.padding[3],
                      .dilation_h = geometry.dilation[0],
                      .dilation_w = geometry.dilation[1],
                      .groups = geometry.groups,
                      .prologue = {},
                      .epilogue = {},
                      .direction = direction,
                      .dtype = dtype};
  const std::string reason = problem.why_invalid();
  if (!reason.empty()) fail(reason);
  if (w_sizes[1] != problem.c_per_group()) {
    fail("w has " + std::to_string(w_sizes[1]) + " maps a filter where x has " + std::to_string(problem.c_per_group()) +
         " a group");
  }
  return problem;
}

namespace {

OwnedTensor dgrad(StagedDy& staged_dy, const Tensor4& w, const int64_t* x_sizes, const Geometry& geometry,
                  bool channels_last, const Choice& choice) {
  const Tensor4& dy = staged_dy.tensor();
  check_dtype(w, dy, "w");
  ConvProblem problem = conv_problem(Direction::dgrad, dtype_of(dy.torch_dtype), x_sizes, w.sizes, geometry);
  check_sizes(dy, y_sizes(problem), "dy");
  Result dx(x_sizes, channels_last, dy.torch_dtype, element_size(problem.dtype), Scratch::x);
  if (dx.empty()) return dx.finish(nullptr);

  problem.x_layout = dx.in_place() ? Layout::nhwc : Layout::nchw;
  problem.w_layout = weight_layout(w);
  note_layout(dy.sizes, dy.strides, problem.y_layout, problem.y_pixel_stride);
  const Kernel& kernel = kernel_for(problem, choice, dy.empty() || w.empty());

  const Operands operands{.x = dx.data(), .w = stage_weights(w, problem), .y = staged_dy.data(problem)};
  run(kernel, problem, operands);
  return dx.finish(operands.x);
}

WeightGradients wgrad(StagedDy& staged_dy, const Tensor4& x, const int64_t* w_sizes, const PrologueTensors& prologue,
                      const Geometry& geometry, bool bias, bool channels_last, const Choice& choice) {
  const Tensor4& dy = staged_dy.tensor();
  check_dtype(x, dy, "x");
  ConvProblem problem = conv_problem(Direction::wgrad, dtype_of(dy.torch_dtype), x.sizes, w_sizes, geometry);
  problem.prologue = prologue_of(prologue);
  check_sizes(dy, y_sizes(problem), "dy");
  Result dw(w_sizes, channels_last, dy.torch_dtype, element_size(problem.dtype), Scratch::w);
  const int64_t bias_size = bias ? problem.k : 0, bias_stride = 1;
  OwnedTensor db = empty_strided(1, &bias_size, &bias_stride, dy.torch_dtype);

  note_layout(x.sizes, x.strides, problem.x_layout, problem.x_pixel_stride);
  problem.w_layout = dw.in_place() ? WeightLayout::krsc : WeightLayout::kcrs;
  note_layout(dy.sizes, dy.strides, problem.y_layout, problem.y_pixel_stride);
  const Kernel& kernel = kernel_for(problem, choice, dw.empty() || dy.empty() || x.empty());

  Operands operands{.x = stage_x(x, prologue, problem), .w = dw.data(), .y = staged_dy.data(problem)};
  if (bias) operands.dbias = scratch<double>(Scratch::channels, problem.k);
  run(kernel, problem, operands);
  if (bias) {
    const void* data = nullptr;
    CNNKERN_TORCH(torch_get_const_data_ptr(db.get(), &data));
    from_accumulator(operands.dbias, problem.k, problem.dtype, const_cast<void*>(data));
  }
  return {dw.finish(operands.w), std::move(db)};
}

}  // namespace

OwnedTensor conv_fprop(AtenTensorHandle x_handle, AtenTensorHandle w_handle, const EpilogueTensors& epilogue,
                       const PrologueTensors& prologue, const Geometry& geometry, const Choice& choice) {
  const Tensor4 x = read_tensor(x_handle, "x"), w = read_tensor(w_handle, "w");
  check_dtype(w, x, "w");
  ConvProblem problem = conv_problem(Direction::fprop, dtype_of(x.torch_dtype), x.sizes, w.sizes, geometry);
  problem.prologue = prologue_of(prologue);
  problem.epilogue = epilogue_of(epilogue);
  Result y(y_sizes(problem).data(), gives_channels_last(x, w), x.torch_dtype, element_size(problem.dtype), Scratch::y);
  if (y.empty()) return y.finish(nullptr);

  note_layout(x.sizes, x.strides, problem.x_layout, problem.x_pixel_stride);
  problem.w_layout = weight_layout(w);
  problem.y_layout = y.in_place() ? Layout::nhwc : Layout::nchw;
  const Kernel& kernel = kernel_for(problem, choice, x.empty() || w.empty());

  Operands operands{.x = stage_x(x, prologue, problem), .w = stage_weights(w, problem), .y = y.data()};
  if (epilogue.scale || epilogue.shift) {
    double* room = scratch<double>(Scratch::channels, 2 * problem.k);
    operands.scale = channel_vector(epilogue.scale, problem.k, problem.dtype, "scale", room);
    operands.shift = channel_vector(epilogue.shift, problem.k, problem.dtype, "shift", room + problem.k);
  }
  if (epilogue.residual) stage_residual(epilogue.residual, x, problem, operands);
  run(kernel, problem, operands);
  return y.finish(operands.y);
}

OwnedTensor conv_plain(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle bias, const Geometry& geometry,
                       const Choice& choice) {
  if (bias && dtype_code(bias) != dtype_code(x)) fail("bias has another dtype than x");
  if (read_tensor(w, "w").empty()) fail("w has no elements");
  return conv_fprop(x, w, {.shift = bias}, {}, geometry, choice);
}

OwnedTensor conv_dgrad(AtenTensorHandle dy, AtenTensorHandle w, const std::array<int64_t, 4>& x_size,
                       const Geometry& geometry, bool channels_last, const Choice& choice) {
  StagedDy staged_dy(dy);
  return dgrad(staged_dy, read_tensor(w, "w"), x_size.data(), geometry, channels_last, choice);
}

WeightGradients conv_wgrad(AtenTensorHandle dy, AtenTensorHandle x, const std::array<int64_t, 4>& w_size,
                           const PrologueTensors& prologue, const Geometry& geometry, bool bias, bool channels_last,
                           const Choice& choice) {
  StagedDy staged_dy(dy);
  return wgrad(staged_dy, read_tensor(x, "x"), w_size.data(), prologue, geometry, bias, channels_last, choice);
}

Gradients conv_backward(AtenTensorHandle dy, AtenTensorHandle x_handle, AtenTensorHandle w_handle,
                        const Geometry& geometry, const GradientsAsked& asked) {
  const Tensor4 x = read_tensor(x_handle, "x"), w = read_tensor(w_handle, "w");
  StagedDy staged_dy(dy);
  const bool channels_last = gives_channels_last(x, w);
  OwnedTensor dx = dgrad(staged_dy, w, x.sizes, geometry, channels_last, asked.dgrad);
  return {std::move(dx), wgrad(staged_dy, x, w.sizes, {}, geometry, asked.bias, channels_last, asked.wgrad)};
}

}  // namespace cnnkern::cpu
