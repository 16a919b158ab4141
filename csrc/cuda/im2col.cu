// im2col: the textbook convolution. The pixels under each position of the filter are written out as a row of a matrix,
// and the convolution is a product of matrices (Chellapilla, Puri and Simard, "High performance convolutional neural
// networks for document processing", IWFHR 2006).
//
//   columns[n,p,q][r,s,c] = prologue(x[n, p*u - pad + r*l, q*u - pad + s*l, c]), or 0 beyond the image
//
//   fprop  y[pixel][k]          = epilogue( sum over rsc of columns[pixel][rsc] * w[k][rsc] )
//   wgrad  dw[k][rsc]           = sum over pixels of dy[pixel][k] * columns[pixel][rsc]
//   dgrad  dcolumns[pixel][rsc] = sum over k of dy[pixel][k] * w[k][rsc],  and each element of dx is the sum of the
//                                 elements of dcolumns that were copied from it (col2im), in float
//
// x, y: NHWC with pixel strides; w: [K][R][S][C]. The columns are R * S times as large as x, so a few images are done
// at a time, as many as have room in half of the workspace.
//
// Bound: R*S times x written and read again: ResNet's 3x3 with 64 maps at 56x56, N=256, in bf16: 59 Gflop, 103 MB of x
// and as much of y, and 0.92 GB of columns: 0.22 ms to write and as long to read on an H200 at 4.3 TB/s, against 75 us
// for the product. The implicit GEMMs are this without the columns.
#include <primitives/divide.h>
#include <primitives/launcher.h>

#include "kernel_list.h"
#include "matrix_product.h"
#include "slices.h"

namespace cnnkern::cuda {
namespace {

constexpr int kThreads = 256;

// --- columns ---------------------------------------------------------------------------------------------------------

struct Geometry {
  int h, w, p, q, r, s, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, x_stride;
  Divider by_c, by_s, by_r, by_q, by_p, by_w, by_h;
  int64_t elements;  // that are written
};

template <class T> struct ColumnsParams {
  Geometry at;
  const T* x;
  T* columns;
  Affine<T> prologue;
};

// A thread has one element of the columns; neighbours have neighbouring maps.
template <class T> __global__ void __launch_bounds__(kThreads) im2col(const ColumnsParams<T> o) {
  const int64_t element = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (element >= o.at.elements) return;
  int rest = static_cast<int>(element);
  const int c = o.at.by_c.split(rest), s = o.at.by_s.split(rest), r = o.at.by_r.split(rest);
  const int q = o.at.by_q.split(rest), p = o.at.by_p.split(rest);
  const int h = p * o.at.stride_h - o.at.pad_top + r * o.at.dilation_h;
  const int w = q * o.at.stride_w - o.at.pad_left + s * o.at.dilation_w;
  float v = 0;
  if (h >= 0 && h < o.at.h && w >= 0 && w < o.at.w) {
    const int64_t pixel = (int64_t{rest} * o.at.h + h) * o.at.w + w;
    v = o.prologue(to_float(o.x[pixel * o.at.x_stride + c]), c);
  }
  o.columns[element] = from_float<T>(v);
}

template <class T> struct GatherParams {
  Geometry at;
  const float* columns;
  T* dx;
};

// A thread has one element of dx, and goes through the taps that it was copied for.
template <class T> __global__ void __launch_bounds__(kThreads) col2im(const GatherParams<T> o) {
  const int64_t element = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (element >= o.at.elements) return;
  const int c = static_cast<int>(element % o.at.by_c.divisor());
  const int pixel = static_cast<int>(element / o.at.by_c.divisor());
  int rest = pixel;
  const int w = o.at.by_w.split(rest), h = o.at.by_h.split(rest);
  float sum = 0;
  for (int r = 0; r < o.at.r; ++r) {
    const int ahead_h = h + o.at.pad_top - r * o.at.dilation_h;
    if (ahead_h < 0 || ahead_h % o.at.stride_h || ahead_h / o.at.stride_h >= o.at.p) continue;
    for (int s = 0; s < o.at.s; ++s) {
      const int ahead_w = w + o.at.pad_left - s * o.at.dilation_w;
      if (ahead_w < 0 || ahead_w % o.at.stride_w || ahead_w / o.at.stride_w >= o.at.q) continue;
      const int64_t row = (int64_t{rest} * o.at.p + ahead_h / o.at.stride_h) * o.at.q + ahead_w / o.at.stride_w;
      sum += o.columns[((row * o.at.r + r) * o.at.s + s) * o.at.by_c.divisor() + c];
    }
  }
  o.dx[int64_t{pixel} * o.at.x_stride + c] = from_float<T>(sum);
}

Geometry geometry_of(const ConvProblem& p, int64_t elements) {
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  return {narrow(p.h),          narrow(p.w),          narrow(p.p()),
          narrow(p.q()),        narrow(p.r),          narrow(p.s),
          narrow(p.stride_h),   narrow(p.stride_w),   narrow(p.pad_top),
          narrow(p.pad_left),   narrow(p.dilation_h), narrow(p.dilation_w),
          narrow(p.x_stride()), Divider(p.c),         Divider(p.s),
          Divider(p.r),         Divider(p.q()),       Divider(p.p()),
          Divider(p.w),         Divider(p.h),         elements};
}

Grid grid_of(int64_t elements) { return {.x = ceil_div(elements, kThreads), .threads = kThreads}; }

// --- how the batch is split ------------------------------------------------------------------------------------------

int64_t columns_of(const ConvProblem& p) { return p.r * p.s * p.c; }
int64_t pixels_of_image(const ConvProblem& p) { return p.p() * p.q(); }

int64_t column_bytes_of_image(const ConvProblem& p) {
  const int64_t size = p.direction == Direction::dgrad ? 4 : kDTypeSizes[static_cast<int>(p.dtype)];
  return pixels_of_image(p) * columns_of(p) * size;
}
int64_t images_at_once(const ConvProblem& p) { return std::min(p.n, kMostWorkspace / 2 / column_bytes_of_image(p)); }
int64_t column_bytes(const ConvProblem& p) {  // so that what follows in the workspace is aligned as well
  return ceil_div(images_at_once(p) * column_bytes_of_image(p), 256) * 256;
}

// wgrad: how the pixels of each part of the batch are split again. All slices are added at once.
template <class T> Split split_of(const ConvProblem& p) {
  const int64_t parts = ceil_div(p.n, images_at_once(p));
  return split(p.k, columns_of(p), images_at_once(p) * pixels_of_image(p), parts, kGemmVariants<T>[0].tile);
}
template <class T> int64_t slice_count(const ConvProblem& p) {
  const int64_t images = images_at_once(p), range = split_of<T>(p).range;
  return p.n / images * ceil_div(images * pixels_of_image(p), range) +
         ceil_div(p.n % images * pixels_of_image(p), range);
}

template <class T> int64_t workspace_bytes(const ConvProblem& p) {
  if (p.direction != Direction::wgrad) return column_bytes(p);
  return column_bytes(p) + slice_count<T>(p) * p.k * columns_of(p) * int64_t{sizeof(float)} + sum_pixels_bytes(p);
}

template <class T> std::string why_not(const ConvProblem& p, const Flags&) {
  if (p.groups > 1) return "it has groups";
  if (const std::string reason = beyond_32_bits(p); !reason.empty()) return reason;
  if (images_at_once(p) == 0 || workspace_bytes<T>(p) > kMostWorkspace)
    return "the workspace is too small for its columns";
  return "";
}

std::string rather_not(const ConvProblem&) { return "the columns are written and read again"; }

// --- the three directions --------------------------------------------------------------------------------------------

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T> int variant_of(const ConvProblem& p, const Operands& operands, int64_t m, int64_t n) {
  const Flags flags{.unaligned = !aligned(operands.w) || !aligned(operands.y) || !aligned(operands.residual)};
  const bool vectors = columns_of(p) % kWidest<T> == 0 && not_in_vectors(p, kWidest<T>, flags).empty();
  return best_variant<T>(sizeof(T) == 4 ? Math::cuda_cores : Math::tensor_cores,
                         vectors ? Loads::vectors : Loads::elements,
                         [&](const GemmTile& tile) { return expected_time(tile, m, n, 1); });
}

// Calls part(first, images) for each part of the batch.
template <class Part> void for_each_part(const ConvProblem& p, Part part) {
  const int64_t images = images_at_once(p);
  for (int64_t first = 0; first < p.n; first += images) part(first, std::min(images, p.n - first));
}

template <class T> T* write_columns(const Operands& operands, int64_t first, int64_t images, const Call& call) {
  const ConvProblem& p = call.problem;
  auto* columns = static_cast<T*>(operands.workspace);
  const int64_t elements = images * pixels_of_image(p) * columns_of(p);
  const ColumnsParams<T> o{geometry_of(p, elements),
                           static_cast<const T*>(operands.x) + first * p.h * p.w * p.x_stride(), columns,
                           prologue_of<T>(p, operands)};
  launch(im2col<T>, grid_of(elements), o, call);
  return columns;
}

template <class T> void run_fprop(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  for_each_part(p, [&](int64_t first, int64_t images) {
    const int64_t pixels = images * pixels_of_image(p), before = first * pixels_of_image(p);
    const T* columns = write_columns<T>(operands, first, images, call);
    FusedEpilogue<T> epilogue = epilogue_of<T>(p, operands);
    if (epilogue.residual) epilogue.residual += before * epilogue.residual_pixel_stride;
    multiply<T, Major::k, Major::k>(variant_of<T>(p, operands, pixels, p.k),
                                    {.a = columns,
                                     .b = static_cast<const T*>(operands.w),
                                     .a_stride = columns_of(p),
                                     .b_stride = columns_of(p),
                                     .m = pixels,
                                     .n = p.k,
                                     .k = columns_of(p),
                                     .out = static_cast<T*>(operands.y) + before * p.y_stride(),
                                     .out_stride = p.y_stride(),
                                     .epilogue = epilogue},
                                    call);
  });
}

template <class T> void run_dgrad(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  auto* columns = static_cast<float*>(operands.workspace);
  for_each_part(p, [&](int64_t first, int64_t images) {
    const int64_t pixels = images * pixels_of_image(p), before = first * pixels_of_image(p);
    multiply<T, Major::k, Major::mn>(variant_of<T>(p, operands, pixels, columns_of(p)),
                                     {.a = static_cast<const T*>(operands.y) + before * p.y_stride(),
                                      .b = static_cast<const T*>(operands.w),
                                      .a_stride = p.y_stride(),
                                      .b_stride = columns_of(p),
                                      .m = pixels,
                                      .n = columns_of(p),
                                      .k = p.k,
                                      .sums = columns},
                                     call);
    const int64_t elements = images * p.h * p.w * p.c;
    const GatherParams<T> o{geometry_of(p, elements), columns,
                            static_cast<T*>(operands.x) + first * p.h * p.w * p.x_stride()};
    launch(col2im<T>, grid_of(elements), o, call);
  });
}

template <class T> void run_wgrad(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const int64_t size = p.k * columns_of(p), range = split_of<T>(p).range;
  auto* slices = reinterpret_cast<float*>(static_cast<char*>(operands.workspace) + column_bytes(p));
  float* slice = slices;
  for_each_part(p, [&](int64_t first, int64_t images) {
    const int64_t pixels = images * pixels_of_image(p);
    multiply<T, Major::mn, Major::mn>(
        variant_of<T>(p, operands, p.k, columns_of(p)),
        {.a = static_cast<const T*>(operands.y) + first * pixels_of_image(p) * p.y_stride(),
         .b = write_columns<T>(operands, first, images, call),
         .a_stride = p.y_stride(),
         .b_stride = columns_of(p),
         .m = p.k,
         .n = columns_of(p),
         .k = pixels,
         .sums = slice,
         .range = range},
        call);
    slice += ceil_div(pixels, range) * size;
  });
  add_slices(slices, size, slice_count<T>(p), static_cast<T*>(operands.w), call);
  sum_pixels<T>(operands, slice, call);
}

template <class T> void append(KernelList& list) {
  const auto name = [](Direction direction) { return kernel_name("im2col", direction, kDTypeOf<T>, "any"); };
  list.push_back({name(Direction::fprop), why_not<T>, rather_not, workspace_bytes<T>, run_fprop<T>});
  list.push_back({name(Direction::dgrad), why_not<T>, rather_not, workspace_bytes<T>, run_dgrad<T>});
  list.push_back({name(Direction::wgrad), why_not<T>, rather_not, workspace_bytes<T>, run_wgrad<T>});
}

}  // namespace

void append_im2col(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
