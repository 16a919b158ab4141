// Depthwise convolution with square filters of 3, 5 and 7:
//
//   fprop            y[n,p,q,k]  = epilogue( sum over r,s of prologue(x[n, p*u - pad + r, q*u - pad + s, k]) * w[k,r,s] )
//   dgrad, stride 1  dx[n,h,w,c] = sum over r,s of dy[n, h + pad - r, w + pad - s, c] * w[c,r,s]
//
// x, y: NHWC with pixel strides; w: [K][R][S]. dgrad at stride 1 is fprop with the filter turned around: one instance
// is both. depthwise_sweep.h has the idea.
//
// 3x3: a thread has 4 maps, 8 bytes of bf16 and 16 of float, of 4 columns: the registers of 8 maps of 2 columns, but half
// of the weights, and as many bytes under way. A warp reads 256 neighbouring bytes all the same. 5x5 and 7x7: 2 maps of 7
// columns, into which 7, 14, 28, 56 and 112 pixels go evenly.
//
// Bound: x and y once. 3x3 on 96 maps of 112x112 pixels at N = 256 in bf16 moves 1.23 GB: 0.29 ms at 4.3 TB/s. At that rate
// 3x3 takes 19 TFLOP/s of the 67 of the fp32 FMA units, some 16 issue slots per element of 27, and a third of shared
// memory's bandwidth for the weights; 5x5 takes 54 TFLOP/s, near the peak. 7x7 would take 105: it is bound by fp32 FFMA and
// reaches at most 64% of a copy. ConvNeXt-T's 7x7 on 96 maps of 56x56 at N = 128: 154 MB, 36 us as a copy, and 1.9 GFMA,
// 56 us of the FMA units.
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
