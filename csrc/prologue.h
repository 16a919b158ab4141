// Prologue: what is done to x while it is read, before the padding is put around it:
//   act(scale[c] * x + shift[c])
// It is the other half of a batch normalisation that stands before its convolution, as in DenseNet and in the
// pre-activation ResNet (He et al., "Identity mappings in deep residual networks", arXiv 1603.05027).
#pragma once

#include "epilogue.h"

namespace cnnkern {

struct Prologue {
  Activation activation = Activation::none;
  bool scale = false, shift = false;  // which operands are present
  float alpha = 0;                    // leaky_relu: slope below 0; elu: its alpha

  bool operator==(const Prologue&) const = default;
};

}  // namespace cnnkern
