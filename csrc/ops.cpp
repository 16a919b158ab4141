// Every op of the namespace cnnkern: its schema and its CPU implementation's way in. No compute, no autograd.
//
// x, dy and the like are [n, c, h, w] tensors of any strides, w is [k, c / groups, r, s]; all operands of a call have
// one dtype: float32, float64, bfloat16 or float16. geometry is stride (vertical, horizontal), padding (top, left,
// bottom, right), dilation (vertical, horizontal) and groups in one list: torch spends a third of a microsecond on each.
// flags are memo.h's. kernel names a kernel to be forced; None leaves the choice to the memo.
#include "cpu/conv.h"
#include "cpu/tool_calls.h"
#include "tensor.h"

namespace cnnkern {
namespace {

cpu::Geometry read_geometry(Arguments& arguments) { return cpu::Geometry::of(arguments.integers<9>("geometry")); }

// The operands and the activation of a prologue, None where there is none.
struct ReadPrologue {
  OwnedTensor scale, shift;
  TextArgument activation;
  float alpha;

  explicit ReadPrologue(Arguments& arguments)
      : scale(arguments.optional_tensor()),
        shift(arguments.optional_tensor()),
        activation(arguments.optional_text()),
        alpha(arguments.optional_number()) {}
  cpu::PrologueTensors tensors() const {
    const std::string_view name = activation.view();
    return {scale.get(), shift.get(), name.empty() ? Activation::none : cpu::activation_named(name), alpha};
  }
};

cpu::Window read_window(Arguments& arguments) {
  return {arguments.integers<2>("kernel"),
          arguments.integers<2>("stride"),
          arguments.integers<2>("padding"),
          {1, 1},
          false,
          true};
}

void fprop(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor x = arguments.tensor(), w = arguments.tensor();
  const OwnedTensor scale = arguments.optional_tensor(), shift = arguments.optional_tensor(),
                    residual = arguments.optional_tensor();
  const cpu::Geometry geometry = read_geometry(arguments);
  const TextArgument activation = arguments.text();
  const float alpha = arguments.number();
  const ReadPrologue prologue(arguments);
  const int64_t flags = arguments.integer();
  const TextArgument kernel = arguments.optional_text();
  stack[0] = returned(cpu::conv_fprop(
      x.get(), w.get(), {scale.get(), shift.get(), residual.get(), cpu::activation_named(activation.view()), alpha},
      prologue.tensors(), geometry, {flags, kernel.view()}));
}

void fprop_plain(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor x = arguments.tensor(), w = arguments.tensor(), bias = arguments.optional_tensor();
  const cpu::Geometry geometry = read_geometry(arguments);
  const int64_t flags = arguments.integer();
  const TextArgument kernel = arguments.optional_text();
  stack[0] = returned(cpu::conv_plain(x.get(), w.get(), bias.get(), geometry, {flags, kernel.view()}));
}

void dgrad(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor dy = arguments.tensor(), w = arguments.tensor();
  const auto x_size = arguments.integers<4>("x_size");
  const cpu::Geometry geometry = read_geometry(arguments);
  const bool channels_last = arguments.boolean();
  const int64_t flags = arguments.integer();
  const TextArgument kernel = arguments.optional_text();
  stack[0] = returned(cpu::conv_dgrad(dy.get(), w.get(), x_size, geometry, channels_last, {flags, kernel.view()}));
}

void wgrad(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor dy = arguments.tensor(), x = arguments.tensor();
  const auto w_size = arguments.integers<4>("w_size");
  const cpu::Geometry geometry = read_geometry(arguments);
  const bool bias = arguments.boolean(), channels_last = arguments.boolean();
  const ReadPrologue prologue(arguments);
  const int64_t flags = arguments.integer();
  const TextArgument kernel = arguments.optional_text();
  cpu::WeightGradients gradients = cpu::conv_wgrad(dy.get(), x.get(), w_size, prologue.tensors(), geometry, bias,
                                                   channels_last, {flags, kernel.view()});
  stack[0] = returned(std::move(gradients.dw));
  stack[1] = returned(std::move(gradients.db));
}

void backward(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor dy = arguments.tensor(), x = arguments.tensor(), w = arguments.tensor();
  const cpu::Geometry geometry = read_geometry(arguments);
  const bool bias = arguments.boolean();
  const int64_t flags = arguments.integer();
  const TextArgument dgrad_kernel = arguments.optional_text(), wgrad_kernel = arguments.optional_text();
  cpu::Gradients gradients = cpu::conv_backward(dy.get(), x.get(), w.get(), geometry,
                                                {bias, {flags, dgrad_kernel.view()}, {flags, wgrad_kernel.view()}});
  stack[0] = returned(std::move(gradients.dx));
  stack[1] = returned(std::move(gradients.weights.dw));
  stack[2] = returned(std::move(gradients.weights.db));
}

// One of the two epilogues of depthwise_separable.
struct ReadEpilogue {
  OwnedTensor scale, shift;
  TextArgument activation;
  float alpha;

  explicit ReadEpilogue(Arguments& arguments)
      : scale(arguments.optional_tensor()),
        shift(arguments.optional_tensor()),
        activation(arguments.text()),
        alpha(arguments.number()) {}
  cpu::EpilogueTensors tensors() const {
    return {scale.get(), shift.get(), nullptr, cpu::activation_named(activation.view()), alpha};
  }
};

void depthwise_separable(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor x = arguments.tensor(), dw_weight = arguments.tensor();
  const ReadEpilogue dw_epilogue(arguments);
  const OwnedTensor pw_weight = arguments.tensor();
  const ReadEpilogue pw_epilogue(arguments);
  const cpu::Geometry geometry = read_geometry(arguments);
  const int64_t flags = arguments.integer();
  const TextArgument kernel = arguments.optional_text();
  stack[0] = returned(cpu::depthwise_separable(x.get(), dw_weight.get(), dw_epilogue.tensors(), pw_weight.get(),
                                               pw_epilogue.tensors(), geometry, {flags, kernel.view()}));
}

void channel_shuffle(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor x = arguments.tensor();
  stack[0] = returned(cpu::channel_shuffle(x.get(), arguments.integer()));
}

void max_pool2d(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor x = arguments.tensor();
  cpu::Window window = read_window(arguments);
  window.dilation = arguments.integers<2>("dilation");
  window.ceil_mode = arguments.boolean();
  cpu::MaxPooled pooled = cpu::max_pool2d(x.get(), window);
  stack[0] = returned(std::move(pooled.y));
  stack[1] = returned(std::move(pooled.indices));
}

void max_pool2d_backward(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor dy = arguments.tensor(), indices = arguments.tensor();
  const auto x_size = arguments.integers<4>("x_size");
  // The window is for devices on which each pixel of dx looks for the windows that it won; here the indices say it.
  read_window(arguments);
  arguments.integers<2>("dilation");
  arguments.boolean();
  stack[0] = returned(cpu::max_pool2d_backward(dy.get(), indices.get(), x_size, arguments.boolean()));
}

void avg_pool2d(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor x = arguments.tensor();
  cpu::Window window = read_window(arguments);
  window.ceil_mode = arguments.boolean();
  window.count_include_pad = arguments.boolean();
  stack[0] = returned(cpu::avg_pool2d(x.get(), window));
}

void avg_pool2d_backward(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor dy = arguments.tensor();
  const auto x_size = arguments.integers<4>("x_size");
  cpu::Window window = read_window(arguments);
  window.ceil_mode = arguments.boolean();
  window.count_include_pad = arguments.boolean();
  stack[0] = returned(cpu::avg_pool2d_backward(dy.get(), x_size, window, arguments.boolean()));
}

void global_avg_pool2d(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const OwnedTensor x = arguments.tensor();
  stack[0] = returned(cpu::global_avg_pool2d(x.get()));
}

}  // namespace

STABLE_TORCH_LIBRARY(cnnkern, m) {
  // y = act(scale * conv(act_x(x_scale * x + x_shift), w) + shift + residual). scale and shift are [k], x_scale and
  // x_shift [c], in x's dtype or its accumulator's.
  m.def(
      "conv2d_fprop(Tensor x, Tensor w, Tensor? scale, Tensor? shift, Tensor? residual, int[] geometry, "
      "str activation, float alpha, Tensor? x_scale, Tensor? x_shift, str? x_activation, float? x_alpha, int flags, "
      "str? kernel) -> Tensor");
  // conv(x, w) + bias of what torch's takes: each further argument would cost a small image's call 50 ns or more.
  m.def("conv2d_fprop.plain(Tensor x, Tensor w, Tensor? bias, int[] geometry, int flags, str? kernel) -> Tensor");
  // dx. channels_last here and below: the memory format of what is returned.
  m.def(
      "conv2d_dgrad(Tensor dy, Tensor w, SymInt[] x_size, int[] geometry, bool channels_last, int flags, "
      "str? kernel) -> Tensor");
  // dw, and db [k] if bias, else [0]; x is read through a prologue as in conv2d_fprop.
  m.def(
      "conv2d_wgrad(Tensor dy, Tensor x, SymInt[] w_size, int[] geometry, bool bias, bool channels_last, "
      "Tensor? x_scale, Tensor? x_shift, str? x_activation, float? x_alpha, int flags, str? kernel) "
      "-> (Tensor dw, Tensor db)");
  // conv2d_dgrad and conv2d_wgrad in one call: dx and dw in the memory format of y.
  m.def(
      "conv2d_backward(Tensor dy, Tensor x, Tensor w, int[] geometry, bool bias, int flags, str? dgrad_kernel, "
      "str? wgrad_kernel) -> (Tensor dx, Tensor dw, Tensor db)");
  // A depthwise convolution, whose geometry it is, and a 1x1 convolution of its result, each with an epilogue.
  m.def(
      "depthwise_separable(Tensor x, Tensor dw_weight, Tensor? dw_scale, Tensor? dw_shift, str dw_activation, "
      "float dw_alpha, Tensor pw_weight, Tensor? pw_scale, Tensor? pw_shift, str pw_activation, float pw_alpha, "
      "int[] geometry, int flags, str? kernel) -> Tensor");
  // The rest as torch.nn.functional has them.
  m.def("channel_shuffle(Tensor x, int groups) -> Tensor");
  m.def(
      "max_pool2d(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode) "
      "-> (Tensor y, Tensor indices)");
  m.def(
      "max_pool2d_backward(Tensor dy, Tensor indices, SymInt[] x_size, int[] kernel, int[] stride, int[] padding, "
      "int[] dilation, bool ceil_mode, bool channels_last) -> Tensor");
  m.def(
      "avg_pool2d(Tensor x, int[] kernel, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad) "
      "-> Tensor");
  m.def(
      "avg_pool2d_backward(Tensor dy, SymInt[] x_size, int[] kernel, int[] stride, int[] padding, bool ceil_mode, "
      "bool count_include_pad, bool channels_last) -> Tensor");
  m.def("global_avg_pool2d(Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(cnnkern, CPU, m) {
  m.impl("conv2d_fprop", fprop);
  m.impl("conv2d_fprop.plain", fprop_plain);
  m.impl("conv2d_dgrad", dgrad);
  m.impl("conv2d_wgrad", wgrad);
  m.impl("conv2d_backward", backward);
  m.impl("depthwise_separable", depthwise_separable);
  m.impl("channel_shuffle", channel_shuffle);
  m.impl("max_pool2d", max_pool2d);
  m.impl("max_pool2d_backward", max_pool2d_backward);
  m.impl("avg_pool2d", avg_pool2d);
  m.impl("avg_pool2d_backward", avg_pool2d_backward);
  m.impl("global_avg_pool2d", global_avg_pool2d);
}

}  // namespace cnnkern
