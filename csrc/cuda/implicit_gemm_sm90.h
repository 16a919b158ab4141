// The Hopper core of dense convolution: implicit GEMM with im2col by the copy engine (implicit_gemm_sm90.cu says how).
#pragma once

#include <primitives/divide.h>
#include <primitives/epilogue.h>
#include <primitives/mma_sm90.h>
#include <primitives/tma.h>

#include "ring_sm90.h"

namespace cnnkern::cuda {

constexpr int kWarpgroup = 128, kConsumers = 2;  // warpgroups of 128 threads that multiply
constexpr int kImplicitGemmThreads = (kConsumers + 1) * kWarpgroup;
constexpr int kSharedLimit = 227 * 1024;

// A block's tile of what is written, and what follows from it.
template <int kPixels_, int kMaps_> struct ImplicitGemmTile {
  static constexpr int kPixels = kPixels_, kMaps = kMaps_;
  // Few maps: they are gemm_m, and the pixels of a consumer gemm_n. Else pixels are gemm_m, 64 at a time.
  static constexpr bool kMapsOnM = kMaps == 64;
  static constexpr int kProducts = kMapsOnM ? 1 : kPixels / kConsumers / 64;  // instructions for the same k
  static constexpr int kSums = (kMapsOnM ? kPixels / kConsumers : kMaps) / 2;  // of one of them, in a thread
  // Two blocks have neighbouring pixels and share the filters, half of which each fetches for both.
  static constexpr int kCluster = kMapsOnM ? 1 : 2;

  static constexpr int kPixelBytes = kPixels * kSwizzledRow, kMapBytes = kMaps * kSwizzledRow;
  static constexpr int kSlotBytes = kPixelBytes + kMapBytes;
  static constexpr int kSlice = 64;  // pixels and maps that go through shared memory at once on their way out
  static constexpr int kSliceBytes = kSlice * kSlice * static_cast<int>(sizeof(float));
  static constexpr int kSlots = (kSharedLimit - kConsumers * kSliceBytes - 256) / kSlotBytes;
  static_assert(kSlots >= 4);
  using Slots = Ring<kSlots, kCluster, kConsumers * kWarpgroup / 32>;

  // Shared memory: slots (pixels, then filters), slices, barriers.
  static constexpr int kSlicesAt = kSlots * kSlotBytes, kBarriersAt = kSlicesAt + kConsumers * kSliceBytes;
  static constexpr int kSharedBytes = kBarriersAt + Slots::kBytes;
};

template <class T> struct ImplicitGemmParams {
  TensorMap from, w;  // x or dy, a tile's pixels and 128 bytes of maps; w, 64 rows of 128 bytes
  T* to;              // y or dx
  int64_t to_pixel_stride;
  FusedEpilogue<T> epilogue;
  int pixels, maps;                    // of what is written
  int depth;                           // maps of what is read
  int tiles;                           // of the cluster
  Divider map_tiles, width, height;    // width, height: of what is written
  int lower_column, lower_row, step_column, step_row;  // the pixel read for pixel (0, 0), and from there to the next
  int r, s, first_column, first_row, tap_column, tap_row;  // offset of the first tap, and from tap to tap
};

template <class T, Direction kDirection, class Tile> class ImplicitGemm {
  using Params = ImplicitGemmParams<T>;
  using Slots = typename Tile::Slots;
  static constexpr int kDepth = kSwizzledRow / static_cast<int>(sizeof(T));  // of gemm_k in a slot
  static constexpr int kBox = 64, kBoxBytes = kBox * kSwizzledRow;           // rows of w that come at once
  // w is [K][R][S][C]: along C, which is gemm_k of fprop and maps of dgrad.
  static constexpr Rows kRowsOfW = kDirection == Direction::fprop ? Rows::along_k : Rows::along_mn;
  static_assert(kDirection == Direction::fprop || sizeof(T) == 2, "TF32 has gemm_k along the rows");

 public:
  __device__ explicit ImplicitGemm(const Params& o) : o_(o), slots_(shared_memory<uint64_t>(Tile::kBarriersAt)) {}

  __device__ void run() const {
    slots_.make();
    // The same in all lanes, which the compiler cannot know of threadIdx.
    const int group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
    if (group == kConsumers) {
      give_registers<40>();
      if (threadIdx.x == kConsumers * kWarpgroup) produce();
    } else {
      take_registers<232>();
      consume(group);
    }
  }

 private:
  struct Place { int pixel, map; };

  __device__ static int first_tile() { return static_cast<int>(blockIdx.x) / Tile::kCluster; }
  __device__ static int tile_step() { return static_cast<int>(gridDim.x) / Tile::kCluster; }
  __device__ static int rank() { return static_cast<int>(blockIdx.x) % Tile::kCluster; }
  // Neighbouring tiles have the same pixels: what they read is in L2 still. Where the last cluster has no pixels left
  // for its second block, that one computes zeros and writes nothing.
  __device__ Place place(int tile) const {
    const int map_tile = o_.map_tiles.split(tile);
    return {(tile * Tile::kCluster + rank()) * Tile::kPixels, map_tile * Tile::kMaps};
  }
  __device__ static Shared<T> pixels_of(int slot) { return shared_memory<T>(slot * Tile::kSlotBytes); }
  __device__ static Shared<T> filters_of(int slot) {
    return shared_memory<T>(slot * Tile::kSlotBytes + Tile::kPixelBytes);
  }

  // --- producer: one thread -----------------------------------------------------------------------------------------

  __device__ void produce() const {
    prefetch_map(o_.from);
    prefetch_map(o_.w);
    typename Slots::Turn turn;
    for (int tile = first_tile(); tile < o_.tiles; tile += tile_step()) {
      const Place at = place(tile);
      int image = at.pixel;
      const int column = o_.width.split(image) * o_.step_column + o_.lower_column;
      const int row = o_.height.split(image) * o_.step_row + o_.lower_row;
      for (int r = 0; r < o_.r; ++r) {
        for (int s = 0; s < o_.s; ++s) {
          for (int depth = 0; depth < o_.depth; depth += kDepth, turn.next()) {
            slots_.take(turn);
            const Barrier full = slots_.full(turn.slot);
            full.expect(Tile::kSlotBytes);
            load_pixels(pixels_of(turn.slot), o_.from, full, depth, column, row, image,
                        o_.first_column + s * o_.tap_column, o_.first_row + r * o_.tap_row);
            load_filters(turn.slot, full, at.map, r * o_.s + s, depth);
          }
        }
      }
    }
    slots_.drain(turn);
  }

  // In boxes of 64 rows: of fprop 64 maps with 128 bytes of gemm_k each, of dgrad 64 of gemm_k with 128 bytes of maps.
  __device__ void load_filters(int slot, const Barrier& full, int map, int tap, int depth) const {
    constexpr int kBoxes = Tile::kMaps / kBox, kOwn = kBoxes / Tile::kCluster;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int box = rank() * kOwn + i;
      const Shared<T> to = filters_of(slot) + box * (kBoxBytes / static_cast<int>(sizeof(T)));
      const int c = kDirection == Direction::fprop ? depth : map + box * kBox;
      const int k = kDirection == Direction::fprop ? map + box * kBox : depth;
      if constexpr (Tile::kCluster > 1) load_box(to, o_.w, full, c, tap, k, (1 << Tile::kCluster) - 1);
      else load_box(to, o_.w, full, c, tap, k);
    }
  }

  // --- consumers: a warpgroup each ----------------------------------------------------------------------------------

  using Sums = float[Tile::kProducts][Tile::kSums];

  __device__ void consume(int group) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int steps = o_.r * o_.s * ((o_.depth + kDepth - 1) / kDepth);
    typename Slots::Turn turn;
    for (int tile = first_tile(); tile < o_.tiles; tile += tile_step()) {
      Sums sums;
      int before = 0;
      for (int step = 0; step < steps; ++step, turn.next()) {
        slots_.full(turn.slot).wait(turn.parity);
        begin_products();
        multiply_slot(sums, turn.slot, group, step > 0);
        commit_products();
        wait_products<1>();  // the step before this
        if (step > 0) slots_.release(before, lane);
        before = turn.slot;
      }
      wait_products<0>();
      slots_.release(before, lane);
#pragma unroll
      for (auto& part : sums) settle(part);
      write(sums, place(tile), group);
    }
  }

  __device__ static void multiply_slot(Sums& sums, int slot, int group, bool plus) {
    constexpr int kSteps = 4, kAlongK = kSwizzledRow / kSteps;  // bytes of gemm_k in an instruction
    constexpr int kStepOfW = kRowsOfW == Rows::along_k ? kAlongK : kDepth / kSteps * kSwizzledRow;
    const MatrixTile pixels(pixels_of(slot).template as<unsigned char>() + group * (Tile::kPixelBytes / kConsumers));
    const MatrixTile filters(filters_of(slot), kBoxBytes);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const MatrixTile w = filters + step * kStepOfW;
#pragma unroll
      for (int i = 0; i < Tile::kProducts; ++i) {
        const MatrixTile x = pixels + (i * 64 * kSwizzledRow + step * kAlongK);
        if constexpr (Tile::kMapsOnM) multiply<T, kRowsOfW, Rows::along_k>(sums[i], w, x, plus || step > 0);
        else multiply<T, Rows::along_k, kRowsOfW>(sums[i], x, w, plus || step > 0);
      }
    }
  }

  // --- epilogue: a consumer's sums, 64 pixels x 64 maps at a time ---------------------------------------------------
  //
  // Through shared memory, from which a thread takes neighbouring maps: so one piece of code with the epilogue serves
  // all sums, and a warp writes whole lines. Meanwhile the producer fills slots for the next tile, and the tensor cores
  // serve the other consumer, which is as many slots ahead or behind as it likes.

  static constexpr int kSlice = Tile::kSlice;

  // Where a sum lies in a slice. The groups of 8 maps are permuted, so that neither way of writing, 2 maps of each of 8
  // pixels or 8 maps of every other pixel, meets a bank twice.
  __device__ static int in_slice(int pixel, int map) {
    return pixel * kSlice + (map ^ (((pixel ^ (pixel >> 2)) & 3) * 8));
  }

  __device__ void write(const Sums& sums, const Place& at, int group) const {
    constexpr int kAcross = Tile::kMapsOnM ? Tile::kPixels / kConsumers / kSlice : Tile::kMaps / kSlice;
    const Shared<float> slice = shared_memory<float>(Tile::kSlicesAt + group * Tile::kSliceBytes);
    const int pixel = at.pixel + group * (Tile::kPixels / kConsumers);
#pragma unroll 1
    for (int i = 0; i < Tile::kProducts * kAcross; ++i) {
      sync_warpgroup(1 + group);  // all have read the slice before this
#pragma unroll
      for (int j = 0; j < Tile::kProducts * kAcross; ++j) {  // sums are registers: their index has to be a constant
        if (i == j) put(sums[j / kAcross], j % kAcross, slice);
      }
      sync_warpgroup(1 + group);  // all have put their part
      if constexpr (Tile::kMapsOnM) write_slice(slice, pixel + i * kSlice, at.map);
      else write_slice(slice, pixel + i / kAcross * kSlice, at.map + i % kAcross * kSlice);
    }
  }

  // Columns 64 `part` and on of an instruction's sums (primitives/mma_sm90.h has who holds which).
  __device__ static void put(const float (&sums)[Tile::kSums], int part, const Shared<float>& slice) {
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
    const int row = thread / 32 * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = row + 8 * half, n = 8 * j + column;
        const float first = sums[part * 32 + j * 4 + half * 2], second = sums[part * 32 + j * 4 + half * 2 + 1];
        if constexpr (Tile::kMapsOnM) {
          slice.store(in_slice(n, m), first);
          slice.store(in_slice(n + 1, m), second);
        } else slice.template store_vector<2>(in_slice(m, n), {first, second});
      }
    }
  }

  __device__ void write_slice(const Shared<float>& slice, int pixel, int map) const {
    constexpr int kVector = kWidest<T>, kVectors = kSlice / kVector, kRows = kWarpgroup / kVectors;
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
    const int k = thread % kVectors * kVector;
    if (map + k >= o_.maps) return;  // maps come in whole vectors
    const MapsEpilogue<T, kVector> epilogue(o_.epilogue, map + k);
#pragma unroll 1
    for (int i = thread / kVectors; i < kSlice && pixel + i < o_.pixels; i += kRows) {
      float values[kVector];
#pragma unroll
      for (int v = 0; v < kVector; v += 4) {
        const auto four = slice.template load_vector<4>(in_slice(i, k + v));
#pragma unroll
        for (int e = 0; e < 4; ++e) values[v + e] = four[e];
      }
      store_vector(o_.to + int64_t{pixel + i} * o_.to_pixel_stride + map + k, epilogue(values, pixel + i));
    }
  }

  const Params& o_;
  const Slots slots_;
};

template <class T, Direction kDirection, class Tile>
__global__ void __launch_bounds__(kImplicitGemmThreads, 1)
    implicit_gemm(const __grid_constant__ ImplicitGemmParams<T> o) {
  ImplicitGemm<T, kDirection, Tile>(o).run();
}

}  // namespace cnnkern::cuda
