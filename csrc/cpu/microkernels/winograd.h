// The transforms of F(m x m, r x r) with m + r - 1 = 6: a tile of m x m outputs from 6 x 6 inputs with 36
// multiplications, where direct convolution takes m * m * r * r: 144 for F(4x4, 3x3), 100 for F(2x2, 5x5).
//
//   y = A' [(G g G') . (B' d B)] A      d input tile, g filter, . element by element
//
// Lavin and Gray (arXiv 1509.09308): Toom-Cook's algorithm at the points 0, 1, -1, 1/2, -2 and infinity, which give half
// the rounding error of the usual 0, 1, -1, 2, -2 (points as in Barabasz et al., arXiv 1803.10986). With
// M(z) = product of (z - point):
//   row j of A'  powers 0 to m - 1 of point j
//   row j of G   powers 0 to r - 1 of point j, over M'(point j): 1, 3, -3, -15/16, 15
//   row j of B'  coefficients of M(z) / (z - point j)
// and for infinity the highest power alone, in B' the coefficients of M. Each function below is one dimension, on vectors
// whose lanes are channels; 1 and -1 share their even and their odd terms.
#pragma once

#include "../simd/vec.h"

namespace cnnkern::cpu::CNNKERN_ISA::winograd {

constexpr int kIn = 6;                // pixels of an input tile along one side
constexpr int kProducts = kIn * kIn;  // per tile and pair of maps
constexpr int kOutOf(int filter) { return kIn - filter + 1; }

// Powers of the points 1/2 and -2.
constexpr float half_to(int power) { return 1.0f / static_cast<float>(1 << power); }
constexpr float minus_two_to(int power) { return (power % 2 ? -1.0f : 1.0f) * static_cast<float>(1 << power); }

// d <- B' d
template <class V> CNNKERN_INLINE void transform_input(V (&d)[kIn]) {
  const V a = d[4] - d[2], b = d[3] - d[1];
  const V even = a + d[3] * 1.5f, odd = b + d[2] * 1.5f;
  d[0] = d[0] - d[2] + a + b * 1.5f;
  d[5] = d[5] - d[3] - b + a * 1.5f;
  d[1] = even + odd;
  d[2] = even - odd;
  d[3] = a + b * 2.0f;
  d[4] = a - b * 0.5f;
}

// y <- A' m
template <class V, int kOut> CNNKERN_INLINE void transform_output(const V (&m)[kIn], V (&y)[kOut]) {
  const V even = m[1] + m[2], odd = m[1] - m[2];
#pragma GCC unroll 6
  for (int i = 0; i < kOut; ++i) {
    y[i] = (i % 2 ? odd : even) + m[3] * half_to(i) + m[4] * minus_two_to(i);
    if (i == 0) y[i] += m[0];
    if (i == kOut - 1) y[i] += m[5];
  }
}

// u <- G g
template <class V, int kFilter> CNNKERN_INLINE void transform_filter(const V (&g)[kFilter], V (&u)[kIn]) {
  V even = g[0], odd = g[1], at_half = g[0], at_minus_two = g[0];
#pragma GCC unroll 6
  for (int r = 1; r < kFilter; ++r) {
    if (r > 1) (r % 2 ? odd : even) += g[r];
    at_half += g[r] * half_to(r);
    at_minus_two += g[r] * minus_two_to(r);
  }
  u[0] = g[0];
  u[1] = (even + odd) * (1.0f / 3);
  u[2] = (odd - even) * (1.0f / 3);
  u[3] = at_half * (-16.0f / 15);
  u[4] = at_minus_two * (1.0f / 15);
  u[5] = g[kFilter - 1];
}

// --- the adjoints, for wgrad: u = sum over tiles of (B' d B) . (A dy A'),  dw = G' u G ------------------------------

// t <- A dy
template <class V, int kOut> CNNKERN_INLINE void transform_gradient(const V (&dy)[kOut], V (&t)[kIn]) {
  V even = dy[0], odd = dy[1], at_half = dy[0], at_minus_two = dy[0];
#pragma GCC unroll 6
  for (int i = 1; i < kOut; ++i) {
    if (i > 1) (i % 2 ? odd : even) += dy[i];
    at_half += dy[i] * half_to(i);
    at_minus_two += dy[i] * minus_two_to(i);
  }
  t[0] = dy[0];
  t[1] = even + odd;
  t[2] = even - odd;
  t[3] = at_half;
  t[4] = at_minus_two;
  t[5] = dy[kOut - 1];
}

// g <- G' u
template <class V, int kFilter> CNNKERN_INLINE void transform_filter_gradient(const V (&u)[kIn], V (&g)[kFilter]) {
  const V even = (u[1] - u[2]) * (1.0f / 3), odd = (u[1] + u[2]) * (1.0f / 3);
  const V at_half = u[3] * (-16.0f / 15), at_minus_two = u[4] * (1.0f / 15);
#pragma GCC unroll 6
  for (int r = 0; r < kFilter; ++r) {
    g[r] = (r % 2 ? odd : even) + at_half * half_to(r) + at_minus_two * minus_two_to(r);
    if (r == 0) g[r] += u[0];
    if (r == kFilter - 1) g[r] += u[5];
  }
}

// --- two dimensions, of one vector of maps --------------------------------------------------------------------------

// In all of them product (i, j) of a tile lies at (i * kIn + j) * stride.

// x + i * row + j * pixel is pixel (i, j) of a tile -> v.
template <class T>
CNNKERN_INLINE void input_tile(const T* x, int64_t row, int64_t pixel, int n, acc_t<T>* v, int64_t stride) {
  using V = Vec<acc_t<T>>;
  V d[kIn][kIn];
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    V column[kIn];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) column[i] = load_n(x + i * row + j * pixel, n);
    transform_input(column);
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) d[i][j] = column[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kIn; ++i) {
    transform_input(d[i]);
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) store(v + (i * kIn + j) * stride, d[i][j]);
  }
}

// m -> the pixels of a tile of y.
template <class A, int kOut> CNNKERN_INLINE void output_tile(const A* m, int64_t stride, Vec<A> (&y)[kOut][kOut]) {
  using V = Vec<A>;
  V rows[kOut][kIn];
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    V column[kIn], out[kOut];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) column[i] = load(m + (i * kIn + j) * stride);
    transform_output(column, out);
#pragma GCC unroll 6
    for (int i = 0; i < kOut; ++i) rows[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kOut; ++i) transform_output(rows[i], y[i]);
}

// w + (r * kFilter + s) * tap is tap (r, s) of the filters -> u.
template <int kFilter, class A>
CNNKERN_INLINE void filter_tile(const A* w, int64_t tap, A* u, int64_t stride) {
  using V = Vec<A>;
  V rows[kIn][kFilter];
#pragma GCC unroll 6
  for (int s = 0; s < kFilter; ++s) {
    V g[kFilter], column[kIn];
#pragma GCC unroll 6
    for (int r = 0; r < kFilter; ++r) g[r] = load(w + (r * kFilter + s) * tap);
    transform_filter(g, column);
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) rows[i][s] = column[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kIn; ++i) {
    V row[kIn];
    transform_filter(rows[i], row);
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) store(u + (i * kIn + j) * stride, row[j]);
  }
}

// dy + i * row + j * pixel is pixel (i, j) of a tile of dy -> t.
template <int kOut, class T>
CNNKERN_INLINE void gradient_tile(const T* dy, int64_t row, int64_t pixel, int n, acc_t<T>* t, int64_t stride) {
  using V = Vec<acc_t<T>>;
  V rows[kIn][kOut];
#pragma GCC unroll 6
  for (int j = 0; j < kOut; ++j) {
    V column[kOut], out[kIn];
#pragma GCC unroll 6
    for (int i = 0; i < kOut; ++i) column[i] = load_n(dy + i * row + j * pixel, n);
    transform_gradient(column, out);
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) rows[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kIn; ++i) {
    V row[kIn];
    transform_gradient(rows[i], row);
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) store(t + (i * kIn + j) * stride, row[j]);
  }
}

// u -> the taps of dw.
template <class A, int kFilter>
CNNKERN_INLINE void filter_gradient(const A* u, int64_t stride, Vec<A> (&dw)[kFilter][kFilter]) {
  using V = Vec<A>;
  V rows[kFilter][kIn];
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    V column[kIn], out[kFilter];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) column[i] = load(u + (i * kIn + j) * stride);
    transform_filter_gradient(column, out);
#pragma GCC unroll 6
    for (int i = 0; i < kFilter; ++i) rows[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kFilter; ++i) transform_filter_gradient(rows[i], dw[i]);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA::winograd
