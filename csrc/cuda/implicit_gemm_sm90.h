// The Hopper core of dense convolution: implicit GEMM with im2col by the copy engine (implicit_gemm_sm90.cu says how).
#pragma once

#include <primitives/divide.h>
#include <primitives/epilogue.h>
#include <primitives/mma_sm90.h>
#include <primitives/tma.h>

#include <bit>

#include "copy_views_sm90.h"
#include "moments.h"
#include "ring_sm90.h"

namespace cnnkern::cuda {

constexpr int kSlicePixels = 64;

// A block's tile of what is written, and what follows from it.
template <int kPixels_, int kMaps_> struct ImplicitGemmTile {
  static constexpr int kPixels = kPixels_, kMaps = kMaps_;
  // Few maps: they are gemm_m, and the pixels of a consumer gemm_n. Else pixels are gemm_m, 64 at a time.
  static constexpr bool kMapsOnM = kMaps == 64;
  static constexpr int kProducts = kMapsOnM ? 1 : kPixels / kConsumers / 64;   // instructions for the same k
  static constexpr int kSums = (kMapsOnM ? kPixels / kConsumers : kMaps) / 2;  // of one of them, in a thread
  // Two blocks have neighbouring pixels and share the filters, half of which each fetches for both.
  static constexpr int kCluster = kMapsOnM ? 1 : 2;

  static constexpr int kPixelBytes = kPixels * kSwizzledRow, kMapBytes = kMaps * kSwizzledRow;
  static constexpr int kSlotBytes = kPixelBytes + kMapBytes;
  // What is written leaves through shared memory in slices: 64 pixels with 128 bytes of maps. A consumer has two.
  static constexpr int kSlice = kSlicePixels, kSliceBytes = kSlice * kSwizzledRow, kSlices = 2;
  static constexpr int kAllSlicesBytes = kConsumers * kSlices * kSliceBytes;
  static constexpr int kSlots = (kSharedLimit - kAllSlicesBytes - 256) / kSlotBytes;
  static_assert(kSlots >= 4);
  using Slots = Ring<kSlots, kCluster>;

  // Shared memory: slots (pixels, then filters), slices, barriers of the slots, a barrier for each slice.
  static constexpr int kSlicesAt = kSlots * kSlotBytes, kSlotBarriersAt = kSlicesAt + kAllSlicesBytes;
  static constexpr int kSliceBarriersAt = kSlotBarriersAt + Slots::kBytes;
  static constexpr int kSharedBytes = kSliceBarriersAt + kConsumers * kSlices * 8;
};

template <class T> struct ImplicitGemmParams {
  TensorMap from, w;       // x or dy, a tile's pixels with 128 bytes of maps; w, 64 rows of 128 bytes
  TensorMap to, residual;  // y or dx, a slice; as y
  Affine<T> epilogue;
  bool has_residual;
  float* statistics;                 // of y without an epilogue: a partial of each slice's pixels; null: not wanted
  int pixels, maps;                  // of what is written
  int depth_begin, depth_end;        // maps of what is read that are summed over
  int tiles;                         // of the cluster
  Divider map_tiles, width, height;  // width, height: of the pixels that are written
  AxisWalk row, column;
  int filter_columns;
  // Of dgrad with a stride: dx of the first pixel, and elements from pixel to pixel. Null where pixels are neighbours.
  T* apart;
  int64_t apart_column, apart_row, apart_image;
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
  __device__ explicit ImplicitGemm(const Params& o) : o_(o), slots_(shared_memory<uint64_t>(Tile::kSlotBarriersAt)) {}

  __device__ void run() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kConsumers * Tile::kSlices; ++i) slice_barrier(i).make(1);
    }
    slots_.make();  // publishes all of them
    take_roles([&] { produce(); }, [&](int group) { consume(group); });
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
      const int column = start(o_.column, o_.width.split(image)), row = start(o_.row, o_.height.split(image));
      for (int r = 0; r < o_.row.taps; ++r) {
        for (int s = 0; s < o_.column.taps; ++s) {
          const auto tap = static_cast<int>((o_.row.first + r * o_.row.every) * o_.filter_columns + o_.column.first +
                                            s * o_.column.every);
          for (int depth = o_.depth_begin; depth < o_.depth_end; depth += kDepth, turn.next()) {
            slots_.take(turn);
            const Barrier full = slots_.full(turn.slot);
            full.expect(Tile::kSlotBytes);
            load_pixels(pixels_of(turn.slot), o_.from, full, depth, column, row, image, offset(o_.column, s),
                        offset(o_.row, r));
            load_filters(turn.slot, full, at.map, tap, depth);
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
    const int steps =
        static_cast<int>(o_.row.taps * o_.column.taps) * ((o_.depth_end - o_.depth_begin + kDepth - 1) / kDepth);
    typename Slots::Turn turn;
    int slices = 0;  // that this consumer has begun with
    for (int tile = first_tile(); tile < o_.tiles; tile += tile_step()) {
      const Place at = place(tile);
      if (leads() && o_.has_residual) fetch_residual(at, group, 0, slices);
      Sums sums;
      slots_.consume(turn, steps, [&](int slot, int step) { multiply_slot(sums, slot, group, step > 0); });
#pragma unroll
      for (auto& part : sums) settle(part);
      write(sums, at, group, slices);
    }
    if (leads()) wait_stores<0>();  // shared memory is there until they have read it
  }

  __device__ static void multiply_slot(Sums& sums, int slot, int group, bool plus) {
    constexpr int kSteps = 4, kAlongK = kSwizzledRow / kSteps;  // bytes of gemm_k in an instruction
    constexpr int kStepOfW = kRowsOfW == Rows::along_k ? kAlongK : kDepth / kSteps * kSwizzledRow;
    const MatrixTile pixels(pixels_of(slot).template as<unsigned char>() + group * (Tile::kPixelBytes / kConsumers));
    const MatrixTile filters(filters_of(slot), kRowsOfW == Rows::along_mn ? kBoxBytes : 0);
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

  // --- epilogue: a consumer's sums, slice by slice ------------------------------------------------------------------
  //
  // A slice is this consumer's alone. It belongs to the copy engine from when the leader has a residual fetched into it
  // until its barrier, and from when the leader has it stored until the leader has waited for that; else to the
  // threads, each of which replaces what it has read of a residual by y. Meanwhile the producer fills slots for the
  // next tile.

  static constexpr int kSliceMaps = kDepth, kSliceSums = kSliceMaps / 2;  // of a slice: maps, and sums in a thread
  static constexpr int kAcross = Tile::kMapsOnM ? Tile::kPixels / kConsumers / Tile::kSlice : Tile::kMaps / kSliceMaps;
  static constexpr int kSlicesOfTile = Tile::kProducts * kAcross;  // of one consumer
  static_assert(!Tile::kMapsOnM || kSliceMaps == Tile::kMaps, "the maps of a tile are those of a slice");

  __device__ static bool leads() { return threadIdx.x % kWarpgroup == 0; }
  __device__ static Shared<T> slice(int group, int i) {
    return shared_memory<T>(Tile::kSlicesAt + (group * Tile::kSlices + i % Tile::kSlices) * Tile::kSliceBytes);
  }
  __device__ static Barrier slice_barrier(int i) {
    return Barrier(shared_memory<uint64_t>(Tile::kSliceBarriersAt) + i);
  }
  // Where slice i of a consumer's part of a tile begins.
  __device__ static Place slice_place(const Place& at, int group, int i) {
    const int pixel = at.pixel + group * (Tile::kPixels / kConsumers);
    if constexpr (Tile::kMapsOnM) return {pixel + i * Tile::kSlice, at.map};
    else return {pixel + i / kAcross * Tile::kSlice, at.map + i % kAcross * kSliceMaps};
  }

  // By the leader: slice i of this tile, the consumer's `count`th of all. What was stored from its place has left.
  __device__ void fetch_residual(const Place& at, int group, int i, int count) const {
    wait_stores<0>();
    const Barrier barrier = slice_barrier(group * Tile::kSlices + count % Tile::kSlices);
    const Place begin = slice_place(at, group, i);
    barrier.expect(Tile::kSliceBytes);
    load_box(slice(group, count), o_.residual, barrier, begin.map, 0, begin.pixel);
  }

  __device__ void write(const Sums& sums, const Place& at, int group, int& slices) const {
#pragma unroll 1
    for (int i = 0; i < kSlicesOfTile; ++i, ++slices) {
      if (leads()) {
        if (o_.has_residual && i + 1 < kSlicesOfTile) fetch_residual(at, group, i + 1, slices + 1);
        else wait_stores<Tile::kSlices - 1>();  // of what was stored from this slice before
      }
      sync_warpgroup(1 + group);  // the slice is free
      float part[kSliceSums];
#pragma unroll
      for (int j = 0; j < kSlicesOfTile; ++j) {  // sums are registers: their index has to be a constant
        if (i != j) continue;
#pragma unroll
        for (int e = 0; e < kSliceSums; ++e) part[e] = sums[j / kAcross][j % kAcross * kSliceSums + e];
      }
      if (o_.has_residual)
        slice_barrier(group * Tile::kSlices + slices % Tile::kSlices).wait(slices / Tile::kSlices % 2);
      const Place begin = slice_place(at, group, i);
      finish(part, begin.map, slice(group, slices));
      fence_copy_engine();
      sync_warpgroup(1 + group);  // all have put their part, and the copy engine will see it
      if (kDirection == Direction::dgrad && o_.apart) scatter(slice(group, slices), begin);
      else if (leads()) {
        store_box(o_.to, slice(group, slices), begin.map, 0, begin.pixel);
        commit_stores();
      }
      if (kDirection == Direction::fprop && o_.statistics) store_statistics(slice(group, slices), begin);
    }
  }

  // A slice to pixels that are no neighbours, by the threads: eight write 128 bytes of a pixel.
  __device__ void scatter(const Shared<T>& slice, const Place& begin) const {
    constexpr int kVector = kWidest<T>, kVectors = kSliceMaps / kVector;
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, map = thread % kVectors * kVector;
    if (begin.map + map >= o_.maps) return;  // maps come in vectors
    for (int i = thread / kVectors; i < Tile::kSlice && begin.pixel + i < o_.pixels; i += kWarpgroup / kVectors) {
      int image = begin.pixel + i;
      const int column = o_.width.split(image), row = o_.height.split(image);
      T* const to = o_.apart + image * o_.apart_image + row * o_.apart_row + column * o_.apart_column;
      store_vector(to + begin.map + map, slice.template load_vector<kVector>(in_slice(i, map)));
    }
  }

  // Statistics of a slice, while the copy engine reads it too: who waits for the slice to be free waits for these
  // threads. Each has one word of maps of every fourth pair of pixels, so that a warp's reads are in different banks.
  __device__ void store_statistics(const Shared<T>& slice, const Place& begin) const {
    constexpr int kMaps = 4 / static_cast<int>(sizeof(T)), kPixels = Tile::kSlice / 4;  // of a thread
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32, part = lane / 8;
    const int map = (thread / 32 * 8 + lane % 8) * kMaps, there = min(Tile::kSlice, o_.pixels - begin.pixel);
    if (there <= 0) return;
    const auto sum = [&](const auto& term) {  // over all pixels, of each map
      Vector<float, kMaps> sums{};
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const int pixel = i / 2 * 8 + part * 2 + i % 2;
        const auto y = slice.template load_vector<kMaps>(in_slice(pixel, map));
#pragma unroll
        for (int e = 0; e < kMaps; ++e) sums[e] += pixel < there ? term(to_float(y[e]), e) : 0;
      }
#pragma unroll
      for (int lanes = 8; lanes < 32; lanes *= 2) {
#pragma unroll
        for (int e = 0; e < kMaps; ++e) sums[e] += __shfl_xor_sync(0xffffffff, sums[e], lanes);
      }
      return sums;
    };
    Vector<float, kMaps> mean = sum([](float y, int) { return y; });
#pragma unroll
    for (int e = 0; e < kMaps; ++e) mean[e] /= static_cast<float>(there);
    const Vector<float, kMaps> m2 = sum([&](float y, int e) { return (y - mean[e]) * (y - mean[e]); });
    if (part > 0 || begin.map + map >= o_.maps) return;  // maps come in words
    float* const to = o_.statistics + int64_t{begin.pixel / Tile::kSlice} * 3 * o_.maps + begin.map + map;
#pragma unroll
    for (int e = 0; e < kMaps; ++e) store_moments(to + e, o_.maps, {static_cast<float>(there), mean[e], m2[e]});
  }

  // Element (pixel, map) of a slice, swizzled.
  __device__ static int in_slice(int pixel, int map) {
    const int piece = map / kWidest<T>, swizzled = piece ^ (pixel % 8);
    return pixel * kSliceMaps + swizzled * kWidest<T> + map % kWidest<T>;
  }

  // Which element of a slice the pair of sums 2 i and 2 i + 1 is the first of (primitives/mma_sm90.h): neighbouring
  // columns of a row, for each 8 columns and for two rows 8 apart. Where maps are rows, lanes of neighbouring maps have
  // exchanged halves (pair_maps), so that a pair is always two maps of a pixel.
  struct Pairs {
    int row, column;
    bool odd;

    __device__ Pairs() {
      const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
      row = thread / 32 * 16 + lane / 4;
      column = lane % 4 * 2;
      odd = lane / 4 % 2;
    }
    __device__ int pixel(int i) const { return Tile::kMapsOnM ? i / 2 * 8 + column + odd : row + i % 2 * 8; }
    __device__ int map(int i) const { return Tile::kMapsOnM ? row - odd + i % 2 * 8 : i / 2 * 8 + column; }
  };
  static constexpr int kPairs = kSliceSums / 2;

  __device__ static void pair_maps(float (&part)[kSliceSums], const Pairs& pairs) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      float &first = part[2 * i], &second = part[2 * i + 1];
      const float other = __shfl_xor_sync(0xffffffff, pairs.odd ? first : second, 4);
      if (pairs.odd) first = other;
      else second = other;
    }
  }

  // apply(sum, factor) for every sum and its map's factor.
  template <class Apply>
  __device__ void with_factors(float (&part)[kSliceSums], const Channels<T>& factors, int first_map, const Pairs& pairs,
                               const Apply& apply) const {
    if (!factors) return;
    constexpr int kSame = Tile::kMapsOnM ? kPairs / 2 : 2;  // pairs of the same maps
#pragma unroll
    for (int group = 0; group < kPairs / kSame; ++group) {
      const auto pair = [&](int i) { return Tile::kMapsOnM ? 2 * i + group : 2 * group + i; };
      const int k = first_map + pairs.map(pair(0));
      if (k >= o_.maps) continue;  // maps come in pairs
      const float of_first = factors[k], of_second = factors[k + 1];
#pragma unroll
      for (int i = 0; i < kSame; ++i) {
        apply(part[2 * pair(i)], of_first);
        apply(part[2 * pair(i) + 1], of_second);
      }
    }
  }

  // y of a slice in place of its residual.
  __device__ void finish(float (&part)[kSliceSums], int first_map, const Shared<T>& slice) const {
    const Pairs pairs;
    if constexpr (Tile::kMapsOnM) pair_maps(part, pairs);
    with_factors(part, o_.epilogue.scale, first_map, pairs, [](float& sum, float scale) { sum *= scale; });
    with_factors(part, o_.epilogue.shift, first_map, pairs, [](float& sum, float shift) { sum += shift; });
    if (o_.has_residual) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const auto added = slice.template load_vector<2>(in_slice(pairs.pixel(i), pairs.map(i)));
        part[2 * i] += to_float(added[0]);
        part[2 * i + 1] += to_float(added[1]);
      }
    }
    activate_all(part);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const Vector<T, 2> y{from_float<T>(part[2 * i]), from_float<T>(part[2 * i + 1])};
      const int at = in_slice(pairs.pixel(i), pairs.map(i));
      if constexpr (sizeof(T) == 2) slice.template as<uint32_t>().store(at / 2, std::bit_cast<uint32_t>(y));
      else slice.template store_vector<2>(at, y);  // for 16 bits the compiler would store some of the halves alone
    }
  }

  __device__ void activate_all(float (&v)[kSliceSums]) const {
    const Activation activation = o_.epilogue.activation;
    if (activation == Activation::none) return;
    if (activation == Activation::relu) {
#pragma unroll
      for (float& one : v) one = activate(one, Activation::relu, 0);
      return;
    }
    // Four at a time, and the next four moved into their place: registers have no index, and this is much code.
#pragma unroll 1
    for (int i = 0; i < kSliceSums; i += 4) {
      float done[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) done[e] = activate(v[e], activation, o_.epilogue.alpha);
#pragma unroll
      for (int e = 0; e < kSliceSums; ++e) v[e] = e + 4 < kSliceSums ? v[e + 4] : done[e + 4 - kSliceSums];
    }
  }

  const Params& o_;
  const Slots slots_;
};

template <class T, Direction kDirection, class Tile>
__global__ void __launch_bounds__(kRoleThreads, 1) implicit_gemm(const __grid_constant__ ImplicitGemmParams<T> o) {
  ImplicitGemm<T, kDirection, Tile>(o).run();
}

}  // namespace cnnkern::cuda
