// Dense convolution on Hopper: implicit GEMM whose im2col is done by the copy engine.
//
//   fprop  y[n,p,q,k]  = epilogue( sum over r,s,c of x[n, p*u - pad + r*l, q*v - pad + s*l, c] * w[k,r,s,c] )
//   dgrad  dx[n,h,w,c] = sum over r,s,k of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/v, k] * w[k,r,s,c], where that is whole
//
// x, y: NHWC with pixel strides; w: [K][R][S][C]. As a GEMM: pixels of what is written x its maps, summed over (r, s,
// maps of what is read) in steps of one tap and 128 bytes of maps. The copy engine walks over a tile's pixels as over
// the rows of a matrix, across the ends of image rows and of images, with zeros where a tap meets padding or nothing
// (primitives/tensor_map.h). dgrad is the same walk with the taps in reverse: at stride 1 over all of dx, else once for
// every parity of a pixel's row and column, each with those taps that meet it (copy_views_sm90.h).
//
// A block stays on its multiprocessor and takes every nth tile. Its warpgroups have roles (implicit_gemm_sm90.h):
//
//   warpgroup  threads that work  registers  does
//   0, 1       128                232        multiply their half of the tile's pixels, slot by slot; then the epilogue
//   2          1                  40         has slots filled as far ahead as they are free, also for the next tile
//
// A slot (ring_sm90.h: who owns it when) is one step of gemm_k, 128 bytes of maps of every pixel of the tile and of
// every filter. Two blocks of a cluster have neighbouring pixels, and each has half of the filters copied to both.
//
// The epilogue is done in the registers, 64 pixels x 128 bytes of maps at a time: scale, shift, residual, activation.
// Such a slice leaves through shared memory by the copy engine, which also has brought the residual to the same place;
// both clip what is outside. Meanwhile the producer fills slots with the next tile, and the other consumer multiplies
// as far as it is behind.
//
// Which operand is gemm_m: an instruction of the tensor cores takes 64 rows of gemm_m by n of gemm_n, both out of
// shared memory, in n / 2 cycles, so it reads (64 + n) * 64 / n bytes a cycle of the 128 that shared memory has. Up to
// 64 maps as gemm_n that is all of them; as gemm_m, with 128 pixels as gemm_n, it is 96. With 128 or 256 maps as
// gemm_n, and pixels as gemm_m, it is 96 or 80.
//
// Bound, the 3x3 convolution of 128 maps on 28 x 28 of ResNet-50, bf16: at batch 128 29.6 GFLOP and 51.7 MB, 37 us at
// 790 TFLOP/s (12 us at 4.3 TB/s); at batch 256 75 us. Predicted: 392 tiles of 256 x 128 are 2.97 waves of 132; a
// tile's 18 steps take 18432 cycles of the tensor cores, and its epilogue, about 1500, adds 8% if nothing hides it: 41
// us at batch 128, 82 us at batch 256. Each step fetches 40 KiB in 1024 cycles from L2, 7.7 TB/s at that rate: if L2
// has less, that is the bound, as every tap fetches its pixels anew.
#include <primitives/launcher.h>
#include <primitives/multiprocessors.h>

#include "copy_views_sm90.h"
#include "implicit_gemm_sm90.h"
#include "kernel_list.h"
#include "naming.h"

namespace cnnkern::cuda {
namespace {

constexpr int64_t kMostTiles = int64_t{1} << 30, kMostParities = 16;

// --- what it cannot do -----------------------------------------------------------------------------------------------

template <class T, Direction kDirection> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (flags.capability != 90) return "it is for compute capability 9.0";
  if (p.groups != 1) return "it has groups";
  if (kDTypeOf<T> == DType::f32 && !flags.tf32) return "TF32 is not allowed";
  if (p.prologue != Prologue{}) return "it has no prologue";
  if (kDirection == Direction::dgrad && p.stride_h * p.stride_w > kMostParities)
    return "its dgrad is for strides of up to 16 parities";
  if (const std::string reason = not_in_vectors(p, kWidest<T>, flags); !reason.empty()) return reason;
  if (const std::string reason = too_many_pixels(p); !reason.empty()) return reason;
  const int64_t pixels = p.n * std::max(p.h * p.w, p.p() * p.q()), maps = std::max(p.c, p.k);
  if ((pixels / 128 + 2) * (maps / 64 + 1) >= kMostTiles || p.r * p.s * maps >= int64_t{1} << 31 ||
      pixels >= (int64_t{1} << 31) - 1024)
    return "its tiles are counted in 32 bits";
  return outside_of_copy_engine(p, kDirection);
}

template <class T, Direction kDirection> std::string why_not_pointwise(const ConvProblem& p, const Flags& flags) {
  return p.pointwise() ? why_not<T, kDirection>(p, flags) : "it is not pointwise";
}

// --- tiles -----------------------------------------------------------------------------------------------------------

// Pixels x maps of a tile and, for the choice among them, at which share of their rate the tensor cores are fed from
// L2: the bytes of a step (pixels, and filters by the block's part of a cluster) against those of 128 x 256, in the
// step's time; and a little more for 64 maps as gemm_m, which for so few reads less of shared memory.
struct TileChoice {
  int pixels, maps;
  double rate;
};
constexpr TileChoice kTiles[] = {{128, 256, 1}, {256, 128, 0.8}, {128, 128, 0.67}, {256, 64, 0.41}};
constexpr int kUsualMultiprocessors = 132;  // of an H100 or H200

// Waves of tiles, by the time that a tile takes.
double predicted_time(const TileChoice& tile, const ConvProblem& p) {
  const bool fprop = p.direction == Direction::fprop;
  const int64_t parities = fprop ? 1 : p.stride_h * p.stride_w;  // one after the other
  const int64_t pixels = p.n * (fprop ? p.p() * p.q() : p.h * p.w) / parities, maps = fprop ? p.k : p.c;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t tiles = ceil_div(pixels, tile.pixels) * ceil_div(maps, tile.maps);
  return static_cast<double>(ceil_div(tiles, kUsualMultiprocessors)) * tile.pixels * tile.maps / tile.rate;
}

template <int kTile> std::string rather_not(const ConvProblem& p) {
  const double own = predicted_time(kTiles[kTile], p);
  for (const TileChoice& tile : kTiles) {
    if (predicted_time(tile, p) < own) return "another tile leaves fewer multiprocessors idle";
  }
  return "";
}

// --- launch ----------------------------------------------------------------------------------------------------------

// w as maps, taps and filters, of which a copy brings 128 bytes of maps of one tap of 64 filters.
TensorView view_of_filters(const ConvProblem& p, const Operands& operands) {
  return {.address = operands.w,
          .dtype = p.dtype,
          .as_tf32 = p.dtype == DType::f32,
          .rank = 3,
          .size = {p.c, p.r * p.s, p.k},
          .stride = {1, p.c, p.r * p.s * p.c},
          .box = {kSwizzledRow / kDTypeSizes[static_cast<int>(p.dtype)], 1, 64}};
}

// For dgrad with a stride: of the pixels of one parity.
template <class T, Direction kDirection, class Tile>
ImplicitGemmParams<T> params_of(const Operands& operands, const Call& call, int64_t parity_h, int64_t parity_w) {
  const ConvProblem& p = call.problem;
  constexpr bool kFprop = kDirection == Direction::fprop;
  Walk walk = walk_of(p, kDirection, parity_h, parity_w);
  // Pixels that no tap meets are zeros: one step of maps beyond the last.
  const int64_t depth = kFprop ? p.c : p.k;
  const bool none = !walk.row.taps || !walk.column.taps;
  if (none) walk.row.taps = walk.column.taps = 1;
  const int64_t maps = kFprop ? p.k : p.c, stride = kFprop ? p.y_stride() : p.x_stride();
  const int64_t pixels = p.n * walk.row.size * walk.column.size, map_tiles = (maps + Tile::kMaps - 1) / Tile::kMaps;
  constexpr int64_t kClusterPixels = Tile::kPixels * Tile::kCluster;
  T* const written = static_cast<T*>(kFprop ? operands.y : operands.x);
  const bool has_residual = kFprop && operands.residual, apart = !kFprop && p.strided();
  const TensorView to = view_of_pixels(p, written, maps, pixels, stride);
  const TensorView residual =
      has_residual ? view_of_pixels(p, operands.residual, maps, pixels, operands.residual_pixel_stride) : to;
  return {.from = tensor_map(view_of_walk(p, operands, walk, Tile::kPixels), call),
          .w = tensor_map(view_of_filters(p, operands), call),
          .to = tensor_map(to, call),
          .residual = tensor_map(residual, call),
          .epilogue = kFprop ? epilogue_of<T>(p, operands).affine : Affine<T>{},
          .has_residual = has_residual,
          .statistics = kFprop ? operands.statistics : nullptr,
          .pixels = static_cast<int>(pixels),
          .maps = static_cast<int>(maps),
          .depth_begin = static_cast<int>(none ? depth : 0),
          .depth_end = static_cast<int>(none ? depth + 1 : depth),
          .tiles = static_cast<int>((pixels + kClusterPixels - 1) / kClusterPixels * map_tiles),
          .map_tiles = Divider(map_tiles),
          .width = Divider(walk.column.size),
          .height = Divider(walk.row.size),
          .row = walk.row,
          .column = walk.column,
          .filter_columns = static_cast<int>(p.s),
          .apart = apart ? written + (parity_h * p.w + parity_w) * stride : nullptr,
          .apart_column = p.stride_w * stride,
          .apart_row = p.stride_h * p.w * stride,
          .apart_image = p.h * p.w * stride};
}

template <class T, Direction kDirection, class Tile> void run(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const bool parities = kDirection == Direction::dgrad;
  for (int64_t h = 0; h < (parities ? std::min(p.stride_h, p.h) : 1); ++h) {
    for (int64_t w = 0; w < (parities ? std::min(p.stride_w, p.w) : 1); ++w) {
      const auto params = params_of<T, kDirection, Tile>(operands, call, h, w);
      const int clusters = std::min(params.tiles, std::max(1, multiprocessors(call) / Tile::kCluster));
      const Grid grid{.x = int64_t{clusters} * Tile::kCluster,
                      .threads = kRoleThreads,
                      .shared_bytes = Tile::kSharedBytes,
                      .cluster = Tile::kCluster};
      launch(implicit_gemm<T, kDirection, Tile>, grid, params, call);
    }
  }
}

// --- list ------------------------------------------------------------------------------------------------------------

enum class Family { pointwise, implicit_gemm };

int64_t partials(const ConvProblem& p) { return (p.n * p.p() * p.q() + kSlicePixels - 1) / kSlicePixels; }

template <class T, Direction kDirection, int kTile> void append_tile(KernelList& list, Family family) {
  constexpr TileChoice kChoice = kTiles[kTile];
  const std::string tile = std::to_string(kChoice.pixels) + 'x' + std::to_string(kChoice.maps);
  const bool pointwise = family == Family::pointwise;
  list.push_back({.name = kernel_name(pointwise ? "pointwise" : "implicit_gemm", kDirection, kDTypeOf<T>, tile, "sm90"),
                  .why_not = pointwise ? why_not_pointwise<T, kDirection> : why_not<T, kDirection>,
                  .rather_not = rather_not<kTile>,
                  .workspace_bytes = nullptr,
                  .run = run<T, kDirection, ImplicitGemmTile<kChoice.pixels, kChoice.maps>>,
                  .partials = kDirection == Direction::fprop ? partials : nullptr});
}

template <class T, Direction kDirection> void append_tiles(KernelList& list, Family family) {
  append_tile<T, kDirection, 0>(list, family);
  append_tile<T, kDirection, 1>(list, family);
  append_tile<T, kDirection, 2>(list, family);
  if constexpr (sizeof(T) == 2) append_tile<T, kDirection, 3>(list, family);
}

void append(KernelList& list, Family family) {
  append_tiles<float, Direction::fprop>(list, family);  // its filters would be transposed in dgrad, which TF32 cannot
  append_tiles<bf16, Direction::fprop>(list, family);
  append_tiles<bf16, Direction::dgrad>(list, family);
  append_tiles<f16, Direction::fprop>(list, family);
  append_tiles<f16, Direction::dgrad>(list, family);
}

}  // namespace

void append_pointwise_sm90(KernelList& list) { append(list, Family::pointwise); }
void append_implicit_gemm_sm90(KernelList& list) { append(list, Family::implicit_gemm); }

}  // namespace cnnkern::cuda
