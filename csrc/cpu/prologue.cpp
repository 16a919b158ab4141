// The prologue: t = act(scale * x + shift), x NHWC with a pixel stride, t NHWC dense.
//
// A pass of its own on the way to the kernel, which reads each element of x once per filter tap. Threads take pixels,
// in each a vector of maps at a time. Bound: memory bandwidth, one read and one write of x.
#include <algorithm>

#include "naming.h"
#include "simd/activation.h"
#include "threads.h"
#include "tool_functions.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

template <class T>
void apply(const Prologue& prologue, const PrologueOperands& operands, int64_t pixels, int64_t c) {
  using A = acc_t<T>;
  const A *scale = static_cast<const A*>(operands.scale), *shift = static_cast<const A*>(operands.shift);
  const A alpha = static_cast<A>(prologue.alpha);
  parallel_for(pixels, std::max<int64_t>(1, 8192 / std::max<int64_t>(c, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const T* x = static_cast<const T*>(operands.x) + pixel * operands.x_pixel_stride;
      T* t = static_cast<T*>(operands.t) + pixel * c;
      for (int64_t i = 0; i < c; i += kLanes<T>) {
        const int n = static_cast<int>(std::min<int64_t>(c - i, kLanes<T>));
        Vec<A> v = load_n(x + i, n);
        if (scale) v *= load_n(scale + i, n);
        if (shift) v += load_n(shift + i, n);
        store_n(t + i, activate<A>(v, prologue.activation, alpha), n);
      }
    }
  });
}

}  // namespace

void prologue(const Prologue& prologue, DType dtype, const PrologueOperands& operands, int64_t pixels, int64_t c) {
  with_dtype(dtype, [&](auto element) { apply<decltype(element)>(prologue, operands, pixels, c); });
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
