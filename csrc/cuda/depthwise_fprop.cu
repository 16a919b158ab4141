// Depthwise convolution with square filters of 3, 5 and 7:
//
//   fprop            y[n,p,q,k]  = epilogue( sum over r,s of prologue(x[n, p*u - pad + r, q*u - pad + s, k]) * w[k,r,s] )
//   dgrad, stride 1  dx[n,h,w,c] = sum over r,s of dy[n, h + pad - r, w + pad - s, c] * w[c,r,s]
//
// x, y: NHWC with pixel strides; w: [K][R][S]. dgrad at stride 1 is fprop with the filter turned around: one instance
// is both. depthwise_sweep.h has the idea. 3x3 keeps its 9 x 4 weights in registers; 5x5 and 7x7 read theirs from shared
// memory, where 2 maps of 8 columns share each read.
//
// A thread loads 8 bytes of bf16 and 16 of float (5x5 and 7x7: half of that); a warp 256 neighbouring bytes. 4 maps of 4
// columns have the registers of 8 maps of 2 columns but half of the weights.
//
// Bound: x and y once. MobileNetV2's conv5 is 3x3/2 on 96 maps of 112x112 pixels; its 3x3/1 twin at N = 256, bf16, moves
// 1.23 GB: 0.29 ms at 4.3 TB/s. 3x3 takes 5.6 GFLOP/0.08 ms of the fp32 FMA units (67 TFLOP/s), and about 16 issue slots
// per element where 27 are to be had at the rate of a copy. 5x5 takes 54 TFLOP/s at that rate, near the peak. 7x7 would
// take 105: it is bound by fp32 FFMA and reaches at most 64% of a copy. ConvNeXt-T's 7x7 on 96 maps of 56x56 at
// N = 128: 154 MB, 36 us as a copy, and 3.8 GFMA = 56 us on the FMA units.
#include "depthwise_sweep.h"
#include "kernel_list.h"

namespace cnnkern::cuda {
namespace {

//                   filter, stride, parts, columns, maps
using Dense3 = Sweep<3, 1, 1, 4, 4>;
using Strided3 = Sweep<3, 2, 1, 2, 4>;
using Dense5 = Sweep<5, 1, 1, 7, 2>;
using Strided5 = Sweep<5, 2, 1, 4, 2>;
using Dense7 = Sweep<7, 1, 1, 7, 2>;
using Strided7 = Sweep<7, 2, 1, 4, 2>;

template <class T, class... Tiles> void append(KernelList& list, Direction direction) {
  (append_sweep<T, Tiles>(list, direction), ...);
}

template <class T> void append(KernelList& list) {
  append<T, Dense3, Strided3, Dense5, Strided5, Dense7, Strided7>(list, Direction::fprop);
  append<T, Dense3, Dense5, Dense7>(list, Direction::dgrad);
}

}  // namespace

void append_depthwise_fprop(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
