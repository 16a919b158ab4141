// The columns of im2col: the patch of x under the filter at each output pixel, written one after another.
#pragma once

#include <algorithm>

#include "../kernel.h"
#include "simd/vec.h"
#include "threads.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// Calls body(input pixel or -1, tap) for each tap of output pixel (p, q) of one image.
template <class Body> CNNKERN_INLINE void each_tap(const ConvProblem& p, int64_t row, int64_t col, const Body& body) {
  for (int64_t r = 0; r < p.r; ++r) {
    const int64_t h = row * p.stride_h - p.pad_top + r * p.dilation_h;
    for (int64_t s = 0; s < p.s; ++s) {
      const int64_t w = col * p.stride_w - p.pad_left + s * p.dilation_w;
      body(h >= 0 && h < p.h && w >= 0 && w < p.w ? h * p.w + w : -1, r * p.s + s);
    }
  }
}

// The columns of `images` images from x on, and of `maps` maps, rows `stride` apart; what lies beyond r*s*maps is zero.
template <class T, class In>
In* write_columns(const ConvProblem& p, const T* x, int64_t images, int64_t maps, int64_t stride) {
  const int64_t pixels = p.p() * p.q();
  In* columns = scratch<In>(Scratch::columns, images * pixels * stride);
  parallel_for(images * pixels, std::max<int64_t>(1, 16384 / stride), [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const T* image = x + pixel / pixels * p.h * p.w * p.x_stride();
      In* out = columns + pixel * stride;
      each_tap(p, pixel % pixels / p.q(), pixel % p.q(), [&](int64_t source, int64_t tap) {
        if (source < 0) {
          std::fill_n(out + tap * maps, maps, In{});
          return;
        }
        for (int64_t c = 0; c < maps; ++c) {
          if constexpr (std::is_same_v<T, In>) out[tap * maps + c] = image[source * p.x_stride() + c];
          else out[tap * maps + c] = to_acc(image[source * p.x_stride() + c]);
        }
      });
      std::fill(out + p.r * p.s * maps, out + stride, In{});
    }
  });
  return columns;
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
