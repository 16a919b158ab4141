// Depthwise-separable convolution, fused (MobileNet, arXiv 1704.04861):
//
//   z[n,p,q,c] = act_dw(scale_dw * sum over r,s of x[n, p*u - pad + r, q*u - pad + s, c] * w_dw[c,r,s] + shift_dw)
//   y[n,p,q,k] = act_pw(scale_pw * sum over c of z[n,p,q,c] * w_pw[k,c] + shift_pw)
//
// x, y: NHWC with pixel strides; w_dw: [C][R][S]; w_pw: [K][C].
//
// The idea: z is never written to memory. A thread owns a block of output rows of one image; it computes their z, in
// the accumulator's type, into a buffer that fits in L2 and multiplies it with all panels of w_pw while it is hot. Both
// halves are the kernels' own tiles (microkernels/group_tile.h, microkernels/brgemm.h). Bound: FMA units, as nearly all
// the arithmetic is in the 1x1; what the fusion saves is a write and a read of z.
#include <algorithm>
#include <vector>

#include "group_sweep.h"
#include "naming.h"
#include "packing.h"
#include "tool_functions.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

constexpr int64_t kBufferBytes = 256 * 1024;  // of z: a quarter of a usual L2
constexpr int kTileHeight = 6;                // pixels of a GEMM tile
constexpr int kPanelVectors = kRegisters >= 32 ? 4 : 2;

// The 1x1 weights as panels of kPanelVectors vectors, the last one as wide as it must be.
template <class T> struct Panels {
  static constexpr int kLane = kLanes<T>, kWidth = kPanelVectors * kLane;
  const acc_t<T>* data;
  int64_t depth, columns;

  int64_t count() const { return (columns + kWidth - 1) / kWidth; }
  int width(int64_t panel) const { return static_cast<int>(std::min<int64_t>(columns - panel * kWidth, kWidth)); }
  const acc_t<T>* at(int64_t panel) const { return data + panel * kWidth * depth; }
};

template <class T>
Panels<T> pack_panels(const T* w, int64_t columns, int64_t depth) {
  Panels<T> panels{nullptr, depth, columns};
  acc_t<T>* packed = scratch<acc_t<T>>(Scratch::packed, panels.count() * panels.kWidth * depth);
  parallel_for(panels.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int columns = panels.width(i), width = (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
      pack_transposed(w + i * panels.kWidth * depth, depth, columns, depth, packed + i * panels.kWidth * depth, width);
    }
  });
  panels.data = packed;
  return panels;
}

template <class T, int NV>
void multiply_vectors(const Tile<acc_t<T>, T>& tile, const EpilogueArgs<T>& epilogue, int vectors) {
  if (vectors == NV) return brgemm_tile<acc_t<T>, T, kTileHeight, NV>(tile, epilogue);
  if constexpr (NV > 1) multiply_vectors<T, NV - 1>(tile, epilogue, vectors);
}

// y = z * panels for `pixels` pixels of z, the first of which is pixel `first` of y. A last tile of fewer pixels
// repeats its last one, which writes that again with the same values.
template <class T>
void multiply(const acc_t<T>* z, int64_t pixels, int64_t first, const Panels<T>& panels,
              const EpilogueArgs<T>& epilogue, T* y, int64_t y_stride) {
  const int64_t offset = 0;
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    Tile<acc_t<T>, T> tile{};
    tile.taps = 1;
    tile.x_offsets = tile.tap_offsets = &offset;
    tile.depth = panels.depth;
    tile.panel = panels.at(panel);
    tile.column = panel * panels.kWidth;
    tile.columns = panels.width(panel);
    tile.y = y + tile.column;
    tile.y_pixel_stride = y_stride;
    for (int64_t begin = 0; begin < pixels; begin += kTileHeight) {
      const acc_t<T>* rows[kTileHeight];
      int64_t places[kTileHeight];
      for (int64_t i = 0; i < kTileHeight; ++i) {
        const int64_t pixel = std::min(begin + i, pixels - 1);
        rows[i] = z + pixel * panels.depth;
        places[i] = first + pixel;
      }
      tile.rows = rows;
      tile.pixels = places;
      multiply_vectors<T, kPanelVectors>(tile, epilogue, (tile.columns + kLanes<T> - 1) / kLanes<T>);
    }
  }
}

template <class T>
EpilogueArgs<T> channel_epilogue(const Epilogue& epilogue, const void* scale, const void* shift) {
  EpilogueArgs<T> args;
  args.scale = static_cast<const acc_t<T>*>(scale);
  args.shift = static_cast<const acc_t<T>*>(shift);
  args.activation = epilogue.activation;
  args.alpha = static_cast<acc_t<T>>(epilogue.alpha);
  return args;
}

template <class T, int S, int U>
void run(const ConvProblem& depthwise, const ConvProblem& pointwise, const SeparableOperands& operands) {
  using A = acc_t<T>;
  Operands in;
  in.x = const_cast<void*>(operands.x);
  Sweep<T, A> sweep = make_sweep<T, A>(depthwise, in);
  sweep.epilogue = channel_epilogue<A>(depthwise.epilogue, operands.dw_scale, operands.dw_shift);
  sweep.w = pack_depthwise(static_cast<const T*>(operands.dw_weight), depthwise.c, S * S, Scratch::columns);
  sweep.out_stride = depthwise.k;
  const Panels<T> panels = pack_panels(static_cast<const T*>(operands.pw_weight), pointwise.k, pointwise.c);
  const EpilogueArgs<T> epilogue = channel_epilogue<T>(pointwise.epilogue, operands.pw_scale, operands.pw_shift);

  // Rows of a block: what fits the buffer, in whole bands, and enough blocks for all threads.
  const int64_t p_count = sweep.rows.out, q_count = sweep.columns.out;
  const int64_t fitting = kBufferBytes / (q_count * depthwise.k * static_cast<int64_t>(sizeof(A)));
  const int64_t shared = (depthwise.n * p_count + thread_count() - 1) / thread_count();
  const int64_t bands = (std::clamp<int64_t>(std::min(fitting, shared), 1, p_count) + kTileRows - 1) / kTileRows;
  const int64_t block_rows = bands * kTileRows, blocks = (p_count + block_rows - 1) / block_rows;
  const int64_t vectors = (depthwise.k + kLanes<T> - 1) / kLanes<T>;
  parallel_for(depthwise.n * blocks, 1, [&](int64_t begin, int64_t end) {
    A* z = scratch<A>(Scratch::local, block_rows * q_count * depthwise.k);
    Sweep<T, A> own = sweep;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / blocks, row = i % blocks * block_rows, last = std::min(row + block_rows, p_count);
      const int64_t first = (image * p_count + row) * q_count;
      own.out = z - first * own.out_stride;  // so that pixel `first` lands at the buffer's begin
      for (int64_t band = row; band < last; band += kTileRows)
        run_band<S, U, false, Values::each>(own, image, band, 0, vectors, false);
      multiply(z, (last - row) * q_count, first, panels, epilogue, static_cast<T*>(operands.y), pointwise.y_stride());
    }
  });
}

using Run = void (*)(const ConvProblem&, const ConvProblem&, const SeparableOperands&);

template <class T>
Run run_for(const ConvProblem& depthwise) {
  const bool dense = depthwise.stride_w == 1;
  switch (depthwise.r) {
    case 3: return dense ? run<T, 3, 1> : run<T, 3, 2>;
    case 5: return dense ? run<T, 5, 1> : run<T, 5, 2>;
    default: return dense ? run<T, 7, 1> : run<T, 7, 2>;
  }
}

}  // namespace

const char* separable_why_not(const ConvProblem& depthwise, const ConvProblem& pointwise) {
  int lanes = 0;
  with_dtype(depthwise.dtype, [&]<class T>(T) { lanes = kLanes<T>; });
  if (!depthwise.depthwise()) return "the first convolution needs one filter per map: groups == C == K";
  if (depthwise.r != 3 && depthwise.r != 5 && depthwise.r != 7) return "needs a depthwise filter of 3x3, 5x5 or 7x7";
  if (!why_not_swept(depthwise, static_cast<int>(depthwise.r), lanes).empty())
    return "needs a square depthwise filter at stride 1 or 2, dilation 1, and at least one vector of maps";
  if (!pointwise.pointwise() || pointwise.strided() || pointwise.groups != 1)
    return "the second convolution needs to be a dense 1x1 at stride 1";
  if (depthwise.epilogue.residual || pointwise.epilogue.residual) return "adds no residual";
  return "";
}

void separable(const ConvProblem& depthwise, const ConvProblem& pointwise, const SeparableOperands& operands) {
  with_dtype(depthwise.dtype, [&]<class T>(T) { run_for<T>(depthwise)(depthwise, pointwise, operands); });
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
