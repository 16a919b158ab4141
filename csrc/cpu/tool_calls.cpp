#include "tool_calls.h"

#include <algorithm>

#include "channels.h"
#include "kernel_list.h"
#include "memo.h"
#include "staging.h"

namespace cnnkern::cpu {
namespace {

using Sizes = std::array<int64_t, 4>;

bool channels_last(const Tensor4& tensor) { return suggests_channels_last(tensor.sizes, tensor.strides); }

// torch's output size of a pooling axis: in ceil_mode a last window is added if it starts inside input or padding.
int64_t pooled_size(int64_t size, const Window& window, int axis) {
  const int64_t stride = window.stride[axis], pad = window.padding[axis];
  const int64_t extent = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
  const int64_t slack = size + 2 * pad - extent;
  if (slack < 0) return 0;
  int64_t pooled = (slack + (window.ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (window.ceil_mode && (pooled - 1) * stride >= size + pad) --pooled;
  return pooled;
}

PoolShape pool_shape(const int64_t* x_sizes, const Window& window) {
  for (int axis = 0; axis < 2; ++axis) {
    if (window.kernel[axis] < 1 || window.stride[axis] < 1 || window.dilation[axis] < 1) {
      fail("a pooling window's sizes, strides and dilations are positive");
    }
    if (window.padding[axis] < 0 || 2 * window.padding[axis] > window.kernel[axis]) {
      fail("a pooling window's padding is at most half its size");
    }
  }
  const PoolShape shape{.n = x_sizes[0],
                        .c = x_sizes[1],
                        .h = x_sizes[2],
                        .w = x_sizes[3],
                        .p = pooled_size(x_sizes[2], window, 0),
                        .q = pooled_size(x_sizes[3], window, 1),
                        .r = window.kernel[0],
                        .s = window.kernel[1],
                        .stride_h = window.stride[0],
                        .stride_w = window.stride[1],
                        .pad_h = window.padding[0],
                        .pad_w = window.padding[1],
                        .dilation_h = window.dilation[0],
                        .dilation_w = window.dilation[1],
                        .count_include_pad = window.count_include_pad};
  if (shape.p < 1 || shape.q < 1) fail("the pooling window is larger than the padded input");
  return shape;
}

Sizes pooled_sizes(const PoolShape& shape) { return {shape.n, shape.c, shape.p, shape.q}; }

void check_sizes(const Tensor4& tensor, const Sizes& expected, const char* name) {
  if (!std::equal(expected.begin(), expected.end(), tensor.sizes)) fail(std::string(name) + " has the wrong sizes");
}

Result result_like(const Tensor4& tensor, const Sizes& sizes, bool channels_last, Scratch slot) {
  return Result(sizes.data(), channels_last, tensor.torch_dtype, element_size(dtype_of(tensor.torch_dtype)), slot);
}

void* staged_x(const Tensor4& x) { return stage_dense(x, element_size(dtype_of(x.torch_dtype)), Scratch::x); }

// Throws unless `kernel` is the name of the fused kernel and nothing speaks against it.
void require_fused(std::string_view kernel, const ConvProblem& depthwise, const ConvProblem& pointwise,
                   const std::string& why_not) {
  const std::string name = "cpu_depthwise_separable_fprop_" +
                           std::string(kDTypeNames[static_cast<int>(depthwise.dtype)]) + "_nhwc_any__" +
                           std::string(tools_isa());
  if (kernel != name) fail("no CPU kernel of depthwise_separable is named '" + std::string(kernel) + "'");
  if (why_not.empty()) return;
  fail(name + " cannot compute " + depthwise.to_string() + " and " + pointwise.to_string() + ": " + why_not);
}

}  // namespace

OwnedTensor channel_shuffle(AtenTensorHandle x_handle, int64_t groups) {
  const Tensor4 x = read_tensor(x_handle, "x");
  const size_t size = element_size(dtype_of(x.torch_dtype));
  const int64_t c = x.sizes[1], pixels = x.sizes[2] * x.sizes[3];
  if (groups < 1 || c % groups) fail("groups does not divide the channels");
  const Sizes sizes = {x.sizes[0], c, x.sizes[2], x.sizes[3]};
  if (!x.empty() && contiguous(x.sizes, x.strides) && !channels_last(x)) {
    OwnedTensor y = dense_tensor(sizes.data(), false, x.torch_dtype);
    tools().channel_shuffle(x.data, read_tensor(y.get(), "y").data, sizes[0], c, groups, pixels, size);
    return y;
  }
  Result y = result_like(x, sizes, channels_last(x), Scratch::y);
  if (y.empty()) return y.finish(nullptr);
  void* data = y.data();
  tools().channel_shuffle(staged_x(x), data, sizes[0] * pixels, c, groups, 1, size);
  return y.finish(data);
}

MaxPooled max_pool2d(AtenTensorHandle x_handle, const Window& window) {
  const Tensor4 x = read_tensor(x_handle, "x");
  const PoolShape shape = pool_shape(x.sizes, window);
  const Sizes sizes = pooled_sizes(shape);
  Result y = result_like(x, sizes, channels_last(x), Scratch::y);
  Result indices(sizes.data(), channels_last(x), aoti_torch_dtype_int64(), sizeof(int64_t), Scratch::columns);
  if (y.empty()) return {y.finish(nullptr), indices.finish(nullptr)};
  void *y_data = y.data(), *index_data = indices.data();
  tools().max_pool2d(shape, dtype_of(x.torch_dtype), staged_x(x), y_data, static_cast<int64_t*>(index_data));
  return {y.finish(y_data), indices.finish(index_data)};
}

OwnedTensor max_pool2d_backward(AtenTensorHandle dy_handle, AtenTensorHandle indices_handle, const Sizes& x_size,
                                bool channels_last) {
  const Tensor4 dy = read_tensor(dy_handle, "dy"), indices = read_tensor(indices_handle, "indices");
  check_sizes(indices, {dy.sizes[0], dy.sizes[1], dy.sizes[2], dy.sizes[3]}, "indices");
  if (indices.torch_dtype != aoti_torch_dtype_int64()) fail("indices are not int64");
  if (dy.sizes[0] != x_size[0] || dy.sizes[1] != x_size[1]) fail("dy has another batch or channels than x");
  const PoolShape shape{
      .n = x_size[0], .c = x_size[1], .h = x_size[2], .w = x_size[3], .p = dy.sizes[2], .q = dy.sizes[3]};
  Result dx = result_like(dy, x_size, channels_last, Scratch::x);
  if (dx.empty()) return dx.finish(nullptr);
  const DType dtype = dtype_of(dy.torch_dtype);
  void* data = dx.data();
  tools().max_pool2d_backward(shape, dtype, stage_dense(dy, element_size(dtype), Scratch::y),
                              static_cast<int64_t*>(stage_dense(indices, sizeof(int64_t), Scratch::columns)), data);
  return dx.finish(data);
}

OwnedTensor avg_pool2d(AtenTensorHandle x_handle, const Window& window) {
  const Tensor4 x = read_tensor(x_handle, "x");
  const PoolShape shape = pool_shape(x.sizes, window);
  Result y = result_like(x, pooled_sizes(shape), channels_last(x), Scratch::y);
  if (y.empty()) return y.finish(nullptr);
  void* data = y.data();
  tools().avg_pool2d(shape, dtype_of(x.torch_dtype), staged_x(x), data);
  return y.finish(data);
}

OwnedTensor avg_pool2d_backward(AtenTensorHandle dy_handle, const Sizes& x_size, const Window& window,
                                bool channels_last) {
  const Tensor4 dy = read_tensor(dy_handle, "dy");
  const PoolShape shape = pool_shape(x_size.data(), window);
  check_sizes(dy, pooled_sizes(shape), "dy");
  Result dx = result_like(dy, x_size, channels_last, Scratch::x);
  if (dx.empty()) return dx.finish(nullptr);
  const DType dtype = dtype_of(dy.torch_dtype);
  void* data = dx.data();
  tools().avg_pool2d_backward(shape, dtype, stage_dense(dy, element_size(dtype), Scratch::y), data);
  return dx.finish(data);
}

OwnedTensor global_avg_pool2d(AtenTensorHandle x_handle) {
  const Tensor4 x = read_tensor(x_handle, "x");
  const int64_t pixels = x.sizes[2] * x.sizes[3];
  if (pixels < 1) fail("x has no pixels to average");
  Result y = result_like(x, {x.sizes[0], x.sizes[1], 1, 1}, channels_last(x), Scratch::y);
  if (y.empty()) return y.finish(nullptr);
  void* data = y.data();
  tools().global_avg_pool2d(x.sizes[0], pixels, x.sizes[1], dtype_of(x.torch_dtype), staged_x(x), data);
  return y.finish(data);
}

OwnedTensor depthwise_separable(AtenTensorHandle x_handle, AtenTensorHandle dw_handle,
                                const EpilogueTensors& dw_epilogue, AtenTensorHandle pw_handle,
                                const EpilogueTensors& pw_epilogue, const Geometry& geometry, const Choice& choice) {
  const Tensor4 x = read_tensor(x_handle, "x"), dw = read_tensor(dw_handle, "dw_weight"),
                pw = read_tensor(pw_handle, "pw_weight");
  if (dw.torch_dtype != x.torch_dtype || pw.torch_dtype != x.torch_dtype) {
    fail("the weights have another dtype than x");
  }
  const DType dtype = dtype_of(x.torch_dtype);
  ConvProblem first = conv_problem(Direction::fprop, dtype, x.sizes, dw.sizes, geometry);
  const int64_t between[4] = {first.n, first.k, first.p(), first.q()};
  const Geometry pointwise{{1, 1}, {0, 0, 0, 0}, {1, 1}, 1};
  ConvProblem second = conv_problem(Direction::fprop, dtype, between, pw.sizes, pointwise);
  first.epilogue = epilogue_of(dw_epilogue);
  second.epilogue = epilogue_of(pw_epilogue);

  const std::string why_not = x.empty() ? "x has no elements" : tools().separable_why_not(first, second);
  const bool forced = !choice.kernel.empty();
  if (forced) require_fused(choice.kernel, first, second, why_not);
  if (!why_not.empty() || (!forced && *tools().separable_rather_not(first, second))) {
    const OwnedTensor middle = conv_fprop(x_handle, dw_handle, dw_epilogue, {}, geometry, {choice.flags, {}});
    return conv_fprop(middle.get(), pw_handle, pw_epilogue, {}, pointwise, {choice.flags, {}});
  }

  const bool like_channels_last = channels_last(x) || channels_last(dw) || channels_last(pw);
  Result y = result_like(x, {second.n, second.k, second.p(), second.q()}, like_channels_last, Scratch::y);
  double* room = scratch<double>(Scratch::channels, 2 * (first.k + second.k));
  const int64_t dw_k = first.k, pw_k = second.k;
  const size_t size = element_size(dtype);
  void* data = y.data();
  const SeparableOperands operands{
      .x = staged_x(x),
      .dw_weight = stage_dense(dw, size, Scratch::w),
      .pw_weight = stage_dense(pw, size, Scratch::residual),
      .y = data,
      .dw_scale = channel_vector(dw_epilogue.scale, dw_k, dtype, "dw_scale", room),
      .dw_shift = channel_vector(dw_epilogue.shift, dw_k, dtype, "dw_shift", room + dw_k),
      .pw_scale = channel_vector(pw_epilogue.scale, pw_k, dtype, "pw_scale", room + 2 * dw_k),
      .pw_shift = channel_vector(pw_epilogue.shift, pw_k, dtype, "pw_shift", room + 2 * dw_k + pw_k)};
  tools().separable(first, second, operands);
  return y.finish(data);
}

}  // namespace cnnkern::cpu
