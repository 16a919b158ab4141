// The transforms of F(4x4, 3x3): a tile of 4 x 4 outputs from 6 x 6 inputs with 36 multiplications instead of 144.
//
//   y = A' [(G g G') . (B' d B)] A     d input tile, g filter, . element by element   (Lavin and Gray, arXiv 1509.09308)
//
// Toom-Cook's algorithm at the points 0, 1, -1, 1/2, -2 and infinity, which give half the rounding error of the usual
// 0, 1, -1, 2, -2 (points as in Barabasz et al., arXiv 1803.10986). With M(z) = product of (z - point):
//   row j of A'  powers 0 to 3 of point j
//   row j of G   powers 0 to 2 of point j, over M'(point j)
//   row j of B'  coefficients of M(z) / (z - point j)
// and for infinity the highest power alone, in B' the coefficients of M. Below each is one dimension, on vectors whose
// lanes are channels; the terms that rows share are computed once.
#pragma once

#include "../simd/vec.h"

namespace cnnkern::cpu::CNNKERN_ISA::winograd {

constexpr int kOut = 4, kIn = 6;      // pixels of a tile along one side
constexpr int kProducts = kIn * kIn;  // per tile and pair of maps
constexpr int kFilter = kIn - kOut + 1;

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
template <class V> CNNKERN_INLINE void transform_output(const V (&m)[kIn], V (&y)[kOut]) {
  const V even = m[1] + m[2], odd = m[1] - m[2];
  y[0] = m[0] + even + (m[3] + m[4]);
  y[1] = odd + m[3] * 0.5f - m[4] * 2.0f;
  y[2] = even + m[3] * 0.25f + m[4] * 4.0f;
  y[3] = odd + m[3] * 0.125f - m[4] * 8.0f + m[5];
}

// u <- G g
template <class V> CNNKERN_INLINE void transform_filter(const V (&g)[kFilter], V (&u)[kIn]) {
  const V even = (g[0] + g[2]) * (1.0f / 3), odd = g[1] * (1.0f / 3);
  u[0] = g[0];
  u[1] = even + odd;
  u[2] = odd - even;
  u[3] = g[0] * (-16.0f / 15) - g[1] * (8.0f / 15) - g[2] * (4.0f / 15);
  u[4] = g[0] * (1.0f / 15) - g[1] * (2.0f / 15) + g[2] * (4.0f / 15);
  u[5] = g[2];
}

// One channel vector of a tile: x + i * row + j * pixel is pixel (i, j) -> v + (i * kIn + j) * stride is product (i,
// j).
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

// One vector of maps of a tile: m + (i * kIn + j) * stride is product (i, j) -> y.
template <class A> CNNKERN_INLINE void output_tile(const A* m, int64_t stride, Vec<A> (&y)[kOut][kOut]) {
  using V = Vec<A>;
  V rows[kOut][kIn];
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    V column[kIn], out[kOut];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) column[i] = load(m + (i * kIn + j) * stride);
    transform_output(column, out);
#pragma GCC unroll 4
    for (int i = 0; i < kOut; ++i) rows[i][j] = out[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < kOut; ++i) transform_output(rows[i], y[i]);
}

// One vector of filters: w + (r * kFilter + s) * tap is tap (r, s) -> u + (i * kIn + j) * stride is product (i, j).
template <class A> CNNKERN_INLINE void filter_tile(const A* w, int64_t tap, A* u, int64_t stride) {
  using V = Vec<A>;
  V columns[kFilter][kIn];
#pragma GCC unroll 3
  for (int s = 0; s < kFilter; ++s) {
    const V g[kFilter] = {load(w + s * tap), load(w + (kFilter + s) * tap), load(w + (2 * kFilter + s) * tap)};
    transform_filter(g, columns[s]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kIn; ++i) {
    V row[kIn];
    transform_filter({columns[0][i], columns[1][i], columns[2][i]}, row);
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) store(u + (i * kIn + j) * stride, row[j]);
  }
}

// --- the adjoints, for wgrad: u = sum over tiles of (B' d B) . (A dy A'),  dw = G' u G ------------------------------

// t <- A dy
template <class V> CNNKERN_INLINE void transform_gradient(const V (&dy)[kOut], V (&t)[kIn]) {
  const V even = dy[0] + dy[2], odd = dy[1] + dy[3];
  t[0] = dy[0];
  t[1] = even + odd;
  t[2] = even - odd;
  t[3] = dy[0] + dy[1] * 0.5f + dy[2] * 0.25f + dy[3] * 0.125f;
  t[4] = dy[0] - dy[1] * 2.0f + dy[2] * 4.0f - dy[3] * 8.0f;
  t[5] = dy[3];
}

// g <- G' u
template <class V> CNNKERN_INLINE void transform_filter_gradient(const V (&u)[kIn], V (&g)[kFilter]) {
  const V even = (u[1] - u[2]) * (1.0f / 3), odd = (u[1] + u[2]) * (1.0f / 3);
  g[0] = u[0] + even - u[3] * (16.0f / 15) + u[4] * (1.0f / 15);
  g[1] = odd - u[3] * (8.0f / 15) - u[4] * (2.0f / 15);
  g[2] = even - u[3] * (4.0f / 15) + u[4] * (4.0f / 15) + u[5];
}

// One vector of maps of a tile of dy, whose pixel (i, j) is dy + i * row + j * pixel -> t + (i * kIn + j) * stride.
template <class T>
CNNKERN_INLINE void gradient_tile(const T* dy, int64_t row, int64_t pixel, int n, acc_t<T>* t, int64_t stride) {
  using V = Vec<acc_t<T>>;
  V columns[kIn][kOut];
#pragma GCC unroll 4
  for (int j = 0; j < kOut; ++j) {
    V column[kOut], out[kIn];
#pragma GCC unroll 4
    for (int i = 0; i < kOut; ++i) column[i] = load_n(dy + i * row + j * pixel, n);
    transform_gradient(column, out);
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) columns[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kIn; ++i) {
    V out[kIn];
    transform_gradient(columns[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) store(t + (i * kIn + j) * stride, out[j]);
  }
}

// One vector of maps of u + (i * kIn + j) * stride -> the taps of dw.
template <class A> CNNKERN_INLINE void filter_gradient(const A* u, int64_t stride, Vec<A> (&dw)[kFilter][kFilter]) {
  using V = Vec<A>;
  V rows[kFilter][kIn];
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    V column[kIn], out[kFilter];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) column[i] = load(u + (i * kIn + j) * stride);
    transform_filter_gradient(column, out);
#pragma GCC unroll 3
    for (int i = 0; i < kFilter; ++i) rows[i][j] = out[i];
  }
#pragma GCC unroll 3
  for (int i = 0; i < kFilter; ++i) transform_filter_gradient(rows[i], dw[i]);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA::winograd
