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

#include "conv_gemm.h"
#include "depthwise_sweep.h"
#include "naming.h"
#include "packing.h"
#include "tool_functions.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

constexpr int64_t kBufferBytes = 256 * 1024;  // of z: a quarter of a usual L2

// The 1x1 weights as panels of the widest tile's vectors, the last one as wide as it must be.
template <class T> struct Panels {
  static constexpr int kLane = kLanes<T>, kWidth = kWideTileVectors * kLane;
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

// y = z * panels for `pixels` pixels of z, the first of which is pixel `first` of y.
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
    const int vectors = (tile.columns + kLanes<T> - 1) / kLanes<T>;
    for (int64_t begin = 0; begin < pixels; begin += kWideTileRows) {
      const acc_t<T>* rows[kWideTileRows];
      int64_t places[kWideTileRows];
      const int count = static_cast<int>(std::min<int64_t>(pixels - begin, kWideTileRows));
      for (int i = 0; i < count; ++i) {
        rows[i] = z + (begin + i) * panels.depth;
        places[i] = first + begin + i;
      }
      tile.rows = rows;
      tile.pixels = places;
      register_tile<acc_t<T>, T>(count, vectors)(tile, epilogue);
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

// Blocks of output rows that an image is cut into: whose z fits the buffer, and as many in all as divide evenly among
// the threads.
int64_t blocks_of_image(int64_t images, int64_t rows, int64_t row_bytes) {
  const int64_t fitting = std::max<int64_t>(kBufferBytes / row_bytes, 1), threads = thread_count();
  int64_t blocks = (rows + fitting - 1) / fitting;
  while (blocks < rows && images * blocks % threads) ++blocks;
  return blocks;
}

template <class T, int S, int U>
void run(const ConvProblem& depthwise, const ConvProblem& pointwise, const SeparableOperands& operands) {
  using A = acc_t<T>;
  Operands in;
  in.x = const_cast<void*>(operands.x);
  Sweep<T, A> sweep = make_sweep<T, A>(depthwise, in);
  sweep.epilogue = channel_epilogue<A>(depthwise.epilogue, operands.dw_scale, operands.dw_shift);
  sweep.w = pack_depthwise(static_cast<const T*>(operands.dw_weight), depthwise.c, S * S, false, Scratch::columns);
  sweep.out_stride = depthwise.k;
  const Panels<T> panels = pack_panels(static_cast<const T*>(operands.pw_weight), pointwise.k, pointwise.c);
  const EpilogueArgs<T> epilogue = channel_epilogue<T>(pointwise.epilogue, operands.pw_scale, operands.pw_shift);

  const int64_t p_count = sweep.rows.out, q_count = sweep.columns.out, row_elements = q_count * depthwise.k;
  const int64_t blocks = blocks_of_image(depthwise.n, p_count, row_elements * static_cast<int64_t>(sizeof(A)));
  const int64_t most_rows = (p_count + blocks - 1) / blocks + kTileRows - 1;  // a last band may reach out of the block
  const int64_t vectors = (depthwise.k + kLanes<T> - 1) / kLanes<T>;
  parallel_for(depthwise.n * blocks, 1, [&](int64_t begin, int64_t end) {
    A* z = scratch<A>(Scratch::local, most_rows * row_elements);
    Sweep<T, A> own = sweep;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / blocks, block = i % blocks;
      const int64_t row = block * p_count / blocks, last = (block + 1) * p_count / blocks;
      const int64_t first = (image * p_count + row) * q_count;
      own.out = z - first * own.out_stride;  // so that pixel `first` lands at the buffer's begin
      for (int64_t band = row; band < last; band += kTileRows)
        run_band<S, U, false, Values::each>(own, image, band, 0, vectors, false, false);
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

// Measured for fp32 on two Zen 4 cores against the two kernels one after the other: MobileNetV1's pairs of 112x112 to
// 14x14 pixels run at 0.96 to 1.07 of their speed where z is in the caches, and 1024 maps of 7x7 pixels at 0.94 to 0.96.
const char* separable_rather_not(const ConvProblem& depthwise, const ConvProblem&) {
  const bool small = depthwise.p() * depthwise.q() < 64;
  return small ? "an image has too few pixels to read all the weights of the 1x1 for them" : "";
}

void separable(const ConvProblem& depthwise, const ConvProblem& pointwise, const SeparableOperands& operands) {
  with_dtype(depthwise.dtype, [&]<class T>(T) { run_for<T>(depthwise)(depthwise, pointwise, operands); });
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
