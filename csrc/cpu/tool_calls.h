// The ops that are no single convolution: tensors of any layout -> the functions of tools.h. All work on 4-d tensors,
// keep the memory format of their input as torch does, and throw std::runtime_error where sizes do not fit.
#pragma once

#include <array>

#include "../tensor.h"
#include "conv.h"

namespace cnnkern::cpu {

OwnedTensor channel_shuffle(AtenTensorHandle x, int64_t groups);

struct Window {
  std::array<int64_t, 2> kernel, stride, padding, dilation;
  bool ceil_mode, count_include_pad;
};

struct MaxPooled {
  OwnedTensor y, indices;  // indices: int64, h * W + w within the image plane
};
MaxPooled max_pool2d(AtenTensorHandle x, const Window& window);
OwnedTensor max_pool2d_backward(AtenTensorHandle dy, AtenTensorHandle indices, const std::array<int64_t, 4>& x_size,
                                bool channels_last);
OwnedTensor avg_pool2d(AtenTensorHandle x, const Window& window);
OwnedTensor avg_pool2d_backward(AtenTensorHandle dy, const std::array<int64_t, 4>& x_size, const Window& window,
                                bool channels_last);
OwnedTensor global_avg_pool2d(AtenTensorHandle x);

// act(scale * depthwise(x) + shift), then a 1x1 convolution with an epilogue of its own: fused where that is possible
// and not slower, else as two convolutions. `choice.kernel` names the fused kernel, which then must be able to.
OwnedTensor depthwise_separable(AtenTensorHandle x, AtenTensorHandle dw_weight, const EpilogueTensors& dw_epilogue,
                                AtenTensorHandle pw_weight, const EpilogueTensors& pw_epilogue,
                                const Geometry& geometry, const Choice& choice);

}  // namespace cnnkern::cpu
