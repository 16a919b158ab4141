// Depthwise dgrad at stride 2 with square filters of 3, 5 and 7, by parity:
//
//   dx[n,h,w,c] = sum over r,s of dy[n, (h + pad - r)/2, (w + pad - s)/2, c] * w[c,r,s], where those are whole
//
// x, y: NHWC with pixel strides; w: [K][R][S]. Rows h of one parity meet the taps r of one parity: a window of
// (R + 1)/2 x (S + 1)/2 pixels of dy gives 2 x 2 pixels of dx, and no tap is tried in vain. depthwise_sweep.h has the
// idea. (Stride 1: depthwise_fprop.cu.)
//
// Bound: dx and dy once. MobileNetV2's conv5, 3x3/2 on 96 maps of 112x112 pixels, at N = 256 in bf16: 0.77 GB, 0.18 ms
// at 4.3 TB/s; of the FMA units R*S/4 per element of dx: 7x7 too stays below their 67 TFLOP/s.
#include "depthwise_sweep.h"
#include "kernel_list.h"

namespace cnnkern::cuda {
namespace {

//                 filter, step, parts, columns, maps
using Filter3 = Sweep<3, 1, 2, 2, 4>;
using Filter5 = Sweep<5, 1, 2, 4, 2>;
using Filter7 = Sweep<7, 1, 2, 3, 2>;

template <class T> void append(KernelList& list) {
  append_sweep<T, Filter3>(list, Direction::dgrad);
  append_sweep<T, Filter5>(list, Direction::dgrad);
  append_sweep<T, Filter7>(list, Direction::dgrad);
}

}  // namespace

void append_depthwise_dgrad(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
