// Epilogue: what is done to a convolution's sum before it is written, while it is still in a register:
//   y = act(scale[k] * conv + shift[k] + residual)
// shift alone is a bias; scale and shift are a folded batch normalisation (Ioffe and Szegedy, arXiv 1502.03167):
//   scale = gamma / sqrt(var + eps),  shift = beta - mean * scale.
#pragma once

#include <cstdint>
#include <string_view>

namespace cnnkern {

enum class Activation : int8_t { none, relu, relu6, leaky_relu, elu, hardswish, silu, sigmoid, tanh };
constexpr std::string_view kActivationNames[] = {"none",      "relu", "relu6",   "leaky_relu", "elu",
                                                 "hardswish", "silu", "sigmoid", "tanh"};

struct Epilogue {
  Activation activation = Activation::none;
  bool scale = false, shift = false, residual = false;  // which operands are present
  float alpha = 0;                                      // leaky_relu: slope below 0; elu: its alpha

  bool operator==(const Epilogue&) const = default;
};

}  // namespace cnnkern
