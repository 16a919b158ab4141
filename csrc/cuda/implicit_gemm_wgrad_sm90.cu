// The filters' gradient on Hopper: implicit GEMM over pixels, whose im2col is done by the copy engine.
//
//   wgrad  dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * x[n, p*u - pad + r*l, q*v - pad + s*l, c]
//
// x, y: NHWC with pixel strides; dw: [K][R][S][C]. As a GEMM: filters x columns, summed over pixels in steps of 64. A
// column block is 64 maps of x at one tap; a tile takes 4 of them in the order of dw, whatever taps they belong to, so
// that few maps fill a tile too. Both operands have their rows, of 64 maps, along gemm_m and gemm_n: the tensor cores
// transpose them as they read. x comes by the same walk over pixels as for fprop, dy in boxes.
//
// A gradient has few tiles and many pixels: pixels are cut into ranges, each block takes every nth (range, tile) and
// writes float sums to the range's slice of the workspace; slices.cu adds the slices in order, the same bits from every
// run.
//
// Roles, slots and who owns them: as in implicit_gemm_sm90.cu and ring_sm90.h. Two consumers share the filters of a
// tile of 128, 64 each, or the columns of a tile of 64. A tile of 256 filters is that of a cluster of two blocks: each
// has half of the columns copied to both, and fetches 32 instead of 48 KiB a step from L2.
//
// Bound, the 3x3 convolution of 128 maps on 28 x 28 of ResNet-50 at batch 128, bf16: 29.6 GFLOP and 52 MB, 37 us at 790
// TFLOP/s. Predicted: 5 tiles of 128 x 256 times 26 ranges of 61 steps are 130 blocks of one wave, whose 4.5 of 5 tiles
// are columns of dw: 44 us; the slices are 15 MB written and read, 7 us; together 51 us.
#include <primitives/divide.h>
#include <primitives/launcher.h>
#include <primitives/mma_sm90.h>
#include <primitives/multiprocessors.h>
#include <primitives/tma.h>

#include <algorithm>

#include "copy_views_sm90.h"
#include "kernel_list.h"
#include "naming.h"
#include "ring_sm90.h"
#include "slices.h"

namespace cnnkern::cuda {
namespace {

constexpr int kBlock = 64;  // pixels of a step, and maps of a block
constexpr int kBlockBytes = kBlock * kSwizzledRow;

// Filters x columns of dw: of a block, or of two blocks of a cluster with 128 filters each and the same columns.
template <int kFilters_> struct Tile {
  static constexpr int kFilters = kFilters_, kColumns = 256;
  static constexpr int kCluster = kFilters > 128 ? 2 : 1, kOwnFilters = kFilters / kCluster;
  static constexpr bool kSharesFilters = kOwnFilters == 128;  // each consumer has half of the filters, else of columns
  static constexpr int kOwnColumns = kSharesFilters ? kColumns : kColumns / kConsumers;
  static constexpr int kSlotBytes = (kOwnFilters + kColumns) / kBlock * kBlockBytes;
  static constexpr int kSlots = kSharedLimit / kSlotBytes;
  static_assert(kSlots >= 4);
  using Slots = Ring<kSlots, kCluster>;
  static constexpr int kSharedBytes = kSlots * kSlotBytes + Slots::kBytes;
  static_assert(kSharedBytes <= kSharedLimit);
};

struct Params {
  TensorMap dy, x;  // 64 maps of 64 pixels
  float* slices;    // [ranges][filters][taps][maps]
  int filters, taps, maps, pixels;
  int range;                           // pixels of one, a multiple of kBlock
  int items;                           // ranges x tiles
  Divider filter_tiles, column_tiles;  // of the sum over one range
  Divider blocks_of_tap, s;            // column blocks of a tap, taps of a row
  Divider width, height;               // of y
  AxisWalk row, column;                // of y over x
};

template <class T, class Tile> class Wgrad {
  using Slots = typename Tile::Slots;

 public:
  __device__ explicit Wgrad(const Params& o)
      : o_(o), slots_(shared_memory<uint64_t>(Tile::kSlots * Tile::kSlotBytes)) {}

  __device__ void run() const {
    slots_.make();
    take_roles([&] { produce(); }, [&](int group) { consume(group); });
  }

 private:
  struct Item { int range, filter, block; };  // first filter and column block of the tile

  __device__ static int first_item() { return static_cast<int>(blockIdx.x) / Tile::kCluster; }
  __device__ static int item_step() { return static_cast<int>(gridDim.x) / Tile::kCluster; }
  __device__ static int rank() { return static_cast<int>(blockIdx.x) % Tile::kCluster; }
  __device__ Item item(int i) const {
    const int filter_tile = o_.filter_tiles.split(i), column_tile = o_.column_tiles.split(i);
    return {i, filter_tile * Tile::kFilters + rank() * Tile::kOwnFilters, column_tile * (Tile::kColumns / kBlock)};
  }
  __device__ int steps_of(int range) const {
    const int64_t begin = int64_t{range} * o_.range;
    const int pixels = static_cast<int>(begin + o_.range < o_.pixels ? o_.range : o_.pixels - begin);
    return (pixels + kBlock - 1) / kBlock;
  }
  // Blocks of a slot: first filters, then columns.
  __device__ static Shared<T> block_of(int slot, int block) {
    return shared_memory<T>(slot * Tile::kSlotBytes + block * kBlockBytes);
  }

  __device__ void produce() const {
    prefetch_map(o_.dy);
    prefetch_map(o_.x);
    typename Slots::Turn turn;
    for (int i = first_item(); i < o_.items; i += item_step()) {
      const Item at = item(i);
      const int steps = steps_of(at.range);
      for (int step = 0; step < steps; ++step, turn.next()) {
        const int pixel = at.range * o_.range + step * kBlock;
        slots_.take(turn);
        const Barrier full = slots_.full(turn.slot);
        full.expect(Tile::kSlotBytes);
        constexpr int kFilterBlocks = Tile::kOwnFilters / kBlock;
        for (int block = 0; block < kFilterBlocks; ++block)
          load_box(block_of(turn.slot, block), o_.dy, full, at.filter + block * kBlock, 0, pixel);
        constexpr int kOwnBlocks = Tile::kColumns / kBlock / Tile::kCluster;
        for (int block = rank() * kOwnBlocks; block < (rank() + 1) * kOwnBlocks; ++block)
          load_columns(block_of(turn.slot, kFilterBlocks + block), full, at.block + block, pixel);
      }
    }
    slots_.drain(turn);
  }

  // To all blocks of the cluster. Where there are no columns any more it is maps beyond the last of x, which are zeros.
  __device__ void load_columns(const Shared<T>& to, const Barrier& full, int block, int pixel) const {
    int tap = block, image = pixel;
    int map = o_.blocks_of_tap.split(tap) * kBlock;
    if (tap >= o_.taps) tap = 0, map = o_.maps;
    int tap_row = tap;
    const int tap_column = o_.s.split(tap_row);
    const int column = start(o_.column, o_.width.split(image)), row = start(o_.row, o_.height.split(image));
    const int tap_w = offset(o_.column, tap_column), tap_h = offset(o_.row, tap_row);
    if constexpr (Tile::kCluster == 1) load_pixels(to, o_.x, full, map, column, row, image, tap_w, tap_h);
    else load_pixels(to, o_.x, full, map, column, row, image, tap_w, tap_h, (1 << Tile::kCluster) - 1);
  }

  using Sums = float[Tile::kOwnColumns / 2];

  __device__ void consume(int group) const {
    typename Slots::Turn turn;
    for (int i = first_item(); i < o_.items; i += item_step()) {
      const Item at = item(i);
      Sums sums;
      slots_.consume(turn, steps_of(at.range), [&](int slot, int step) { multiply_slot(sums, slot, group, step > 0); });
      settle(sums);
      write(sums, at, group);
    }
  }

  __device__ static void multiply_slot(Sums& sums, int slot, int group, bool plus) {
    constexpr int kSteps = 4, kStepBytes = kBlockBytes / kSteps;  // 16 pixels
    constexpr int kFilterBlocks = Tile::kOwnFilters / kBlock, kOwnBlocks = Tile::kOwnColumns / kBlock;
    const MatrixTile filters(block_of(slot, Tile::kSharesFilters ? group : 0), kBlockBytes);
    const MatrixTile columns(block_of(slot, kFilterBlocks + (Tile::kSharesFilters ? 0 : group * kOwnBlocks)),
                             kBlockBytes);
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      multiply<T, Rows::along_mn, Rows::along_mn>(sums, filters + step * kStepBytes, columns + step * kStepBytes,
                                                  plus || step > 0);
  }

  // Straight from the registers: four lanes write 32 neighbouring bytes.
  __device__ void write(const Sums& sums, const Item& at, int group) const {
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
    const int filter = at.filter + (Tile::kSharesFilters ? group * kBlock : 0) + thread / 32 * 16 + lane / 4;
    const int64_t row = int64_t{o_.taps} * o_.maps;
    float* const slice = o_.slices + (int64_t{at.range} * o_.filters + filter) * row;
    const int first_block = at.block + (Tile::kSharesFilters ? 0 : group * (Tile::kOwnColumns / kBlock));
#pragma unroll
    for (int block = 0; block < Tile::kOwnColumns / kBlock; ++block) {
      int tap = first_block + block;
      const int map = o_.blocks_of_tap.split(tap) * kBlock + lane % 4 * 2;
      if (tap >= o_.taps) return;
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
        if (map + 8 * j >= o_.maps) break;  // maps come in pairs
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int first = block * (kBlock / 2) + j * 4 + half * 2;
          if (filter + 8 * half < o_.filters)
            store_vector<2>(slice + 8 * half * row + int64_t{tap} * o_.maps + map + 8 * j,
                            Vector<float, 2>{sums[first], sums[first + 1]});
        }
      }
    }
  }

  const Params& o_;
  const Slots slots_;
};

template <class T, int kFilters>
__global__ void __launch_bounds__(kRoleThreads, 1) implicit_gemm_wgrad(const __grid_constant__ Params o) {
  Wgrad<T, Tile<kFilters>>(o).run();
}

// --- how pixels are cut ----------------------------------------------------------------------------------------------

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tiles_of(const ConvProblem& p, int64_t filters) {
  return ceil_div(p.k, filters) * ceil_div(p.r * p.s * ceil_div(p.c, kBlock), 256 / kBlock);
}

struct Ranges { int64_t count, pixels; };

// As many as make the shortest run of waves, of 132 blocks, and of sums over slices.
Ranges ranges_of(const ConvProblem& p, int64_t filters) {
  constexpr int64_t kMultiprocessors = 132, kMost = 2 * kMultiprocessors, kLeastSteps = 4;
  const int64_t cluster = filters > 128 ? 2 : 1;
  constexpr double kTileSteps = 2;         // what a tile costs besides its steps, in steps
  constexpr double kBytesPerStep = 2.5e6;  // of device memory, in the time of a step: 128 x 256 x 64 at 790 TFLOP/s
  const int64_t pixels = p.n * p.p() * p.q(), steps = ceil_div(pixels, kBlock), tiles = tiles_of(p, filters);
  const int64_t slice_bytes = p.k * p.r * p.s * p.c * int64_t{sizeof(float)};
  Ranges best{1, steps * kBlock};
  double least = 0;
  for (int64_t count = 1; count <= std::min(kMost, ceil_div(steps, kLeastSteps)); ++count) {
    const int64_t own = ceil_div(steps, count);
    if (count > 1 && (ceil_div(steps, own) != count || count * slice_bytes > kMostWorkspace / 2)) continue;
    const auto waves = static_cast<double>(ceil_div(tiles * count, kMultiprocessors / cluster));
    const double time = waves * (static_cast<double>(own) + kTileSteps) * static_cast<double>(filters / cluster) / 128 +
                        2 * static_cast<double>(count * slice_bytes) / kBytesPerStep;
    if (count > 1 && time >= least) continue;
    least = time;
    best = {count, own * kBlock};
  }
  return best;
}

template <int kFilters> int64_t slices_bytes(const ConvProblem& p) {
  return ceil_div(ranges_of(p, kFilters).count * p.k * p.r * p.s * p.c * int64_t{sizeof(float)}, 256) * 256;
}
template <int kFilters> int64_t workspace_bytes(const ConvProblem& p) {
  return slices_bytes<kFilters>(p) + sum_pixels_bytes(p);
}

// --- list ------------------------------------------------------------------------------------------------------------

template <class T, int kFilters> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (flags.capability != 90) return "it is for compute capability 9.0";
  if (p.groups != 1) return "it has groups";
  if (p.prologue != Prologue{}) return "it has no prologue";
  if (const std::string reason = not_in_vectors(p, kWidest<T>, flags); !reason.empty()) return reason;
  if (const std::string reason = too_many_pixels(p); !reason.empty()) return reason;
  constexpr int64_t kMost = int64_t{1} << 31;
  if (p.n * p.p() * p.q() >= kMost - kBlock || std::max(p.c, p.k) >= kMost || p.r * p.s * p.c >= kMost ||
      tiles_of(p, kFilters) * ranges_of(p, kFilters).count >= kMost / 2)
    return "its tiles are counted in 32 bits";
  if (workspace_bytes<kFilters>(p) > kMostWorkspace) return "it needs too much workspace";
  return outside_of_copy_engine(p, Direction::wgrad);
}

// The largest tile that K fills no worse than a smaller one would.
template <int kFilters> std::string rather_not(const ConvProblem& p) {
  const int64_t padded = ceil_div(p.k, 128) * 128;
  const int best = p.k <= 64 ? 64 : padded % 256 ? 128 : 256;
  return best == kFilters ? "" : "a tile of " + std::to_string(best) + " filters reads less or is better filled";
}

template <class T, int kFilters> void run(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const Walk walk = walk_of(p, Direction::wgrad);
  const Ranges ranges = ranges_of(p, kFilters);
  const int64_t pixels = p.n * p.p() * p.q(), blocks_of_tap = ceil_div(p.c, kBlock);
  float* const slices = static_cast<float*>(operands.workspace);
  const auto narrow = [](int64_t n) { return static_cast<int>(n); };
  const Params o{.dy = tensor_map(view_of_pixels(p, operands.y, p.k, pixels, p.y_stride()), call),
                 .x = tensor_map(view_of_walk(p, operands, walk, kBlock), call),
                 .slices = slices,
                 .filters = narrow(p.k),
                 .taps = narrow(p.r * p.s),
                 .maps = narrow(p.c),
                 .pixels = narrow(pixels),
                 .range = narrow(ranges.pixels),
                 .items = narrow(ranges.count * tiles_of(p, kFilters)),
                 .filter_tiles = Divider(ceil_div(p.k, kFilters)),
                 .column_tiles = Divider(ceil_div(p.r * p.s * blocks_of_tap, 256 / kBlock)),
                 .blocks_of_tap = Divider(blocks_of_tap),
                 .s = Divider(p.s),
                 .width = Divider(p.q()),
                 .height = Divider(p.p()),
                 .row = walk.row,
                 .column = walk.column};
  constexpr int kCluster = Tile<kFilters>::kCluster;
  const Grid grid{.x = int64_t{kCluster} * std::min(o.items, std::max(1, multiprocessors(call) / kCluster)),
                  .threads = kRoleThreads,
                  .shared_bytes = Tile<kFilters>::kSharedBytes,
                  .cluster = kCluster};
  launch(implicit_gemm_wgrad<T, kFilters>, grid, o, call);
  add_slices<T>(slices, p.k * p.r * p.s * p.c, ranges.count, static_cast<T*>(operands.w), call);
  sum_pixels<T>(operands, slices + slices_bytes<kFilters>(p) / static_cast<int64_t>(sizeof(float)), call);
}

template <class T, int kFilters> void append_tile(KernelList& list) {
  list.push_back(
      {.name = kernel_name("implicit_gemm", Direction::wgrad, kDTypeOf<T>, std::to_string(kFilters) + "x256", "sm90"),
       .why_not = why_not<T, kFilters>,
       .rather_not = rather_not<kFilters>,
       .workspace_bytes = workspace_bytes<kFilters>,
       .run = run<T, kFilters>});
}

}  // namespace

// TF32 needs its operands along gemm_k, which pixels are not.
void append_implicit_gemm_wgrad_sm90(KernelList& list) {
  append_tile<bf16, 256>(list);
  append_tile<bf16, 128>(list);
  append_tile<bf16, 64>(list);
  append_tile<f16, 256>(list);
  append_tile<f16, 128>(list);
  append_tile<f16, 64>(list);
}

}  // namespace cnnkern::cuda
