// The sweep of depthwise fprop and dgrad: a thread has some columns and maps and walks down the rows of what is read.
//
// Row h reaches the kReach rows of what is written whose windows it is in: their sums are kept in registers, every
// vector is loaded once (and once more by each neighbour whose window it is in: from L1), and a row is written when its
// last contribution is in. Row h + 1 is under way while row h is multiplied.
//
// A *place* is what one window of kTaps x kTaps pixels gives. Without parts it is a pixel: kTaps is the filter's size,
// kStep its stride. dgrad at stride 2 has 2 x 2 parts: dx[2m + a - pad] takes the rows m - d of dy with
// tap 2d + a, so that (filter + 1) / 2 rows of dy give two rows of dx, and each of the filter's taps is used in one part.
#pragma once

#include "depthwise.h"
#include "moments.h"

namespace cnnkern::cuda {

// kColumns places side by side and kMaps maps are a thread's.
template <int kFilter_, int kStep_, int kParts_, int kColumns_, int kMaps_> struct Sweep {
  static constexpr int kFilter = kFilter_, kStep = kStep_, kParts = kParts_, kColumns = kColumns_, kMaps = kMaps_;
  static constexpr int kTaps = (kFilter + kParts - 1) / kParts;
  static constexpr int kReach = (kTaps + kStep - 1) / kStep;
  static constexpr int kRead = (kColumns - 1) * kStep + kTaps;
  static constexpr int kWritten = kColumns * kParts;
  static constexpr int kFilterTaps = kFilter * kFilter;
  static constexpr int kBlocks = kFilter == 3 ? 3 : 2;          // of a multiprocessor
  static constexpr bool kCounted = kParts == 1 && kFilter < 7;  // statistics of y: 7x7 has no registers left for them
  // The filter's tap that stands at place `at` of a window in one part, on one axis; kFilter or more: none.
  static constexpr __host__ __device__ int tap(int at, int part) {
    return kParts == 1 ? at : kParts * (kTaps - 1 - at) + part;
  }
};

template <class T> struct SweepParams {
  const T *from, *w;   // [n][from_h][from_w] pixels; [maps][filter taps]
  T* to;               // [n][to_h][to_w] pixels
  Affine<T> prologue;  // its activation is a clamp
  bool has_prologue;
  FusedEpilogue<T> epilogue;
  float* statistics;                       // of y without an epilogue: a partial of each block; null: not wanted
  int from_pixel_stride, to_pixel_stride;  // at most kMostPixelStride
  DepthwiseTiling tiling;
  Divider bands;              // that the rows of places are cut into
  int band_rows, place_rows;  // of a band; of an image
  int maps, from_h, from_w, to_h, to_w;
  int pad_top, pad_left;        // place i reads from row i * kStep - pad_top on
  int origin_top, origin_left;  // part a of place i is row i * kParts + a - origin_top
  bool turned;                  // the filter is turned around
};

// What a block keeps per map, as float in shared memory: [row][map of the block]. First its filter's taps, then these.
enum Staged { kPrologueScale, kPrologueShift, kScale, kShift, kStagedRows };

template <class T, class Tile> __device__ void stage(const SweepParams<T>& o, int first_map) {
  const Shared<float> staged = shared_memory<float>();
  const int maps = o.tiling.lanes.divisor() * Tile::kMaps, there = min(maps, o.maps - first_map);
  for (int i = threadIdx.x; i < there * Tile::kFilterTaps; i += kDepthwiseThreads) {
    const int map = i / Tile::kFilterTaps, tap = i % Tile::kFilterTaps;
    const float weight = to_float(o.w[int64_t{first_map} * Tile::kFilterTaps + i]);
    staged.store((o.turned ? Tile::kFilterTaps - 1 - tap : tap) * maps + map, weight);
  }
  const auto value = [](const Channels<T>& channels, int map, float otherwise) {
    return channels ? channels[map] : otherwise;
  };
  const Shared<float> rows = staged + Tile::kFilterTaps * maps;
  for (int i = threadIdx.x; i < there; i += kDepthwiseThreads) {
    const int map = first_map + i;
    rows.store(kPrologueScale * maps + i, value(o.prologue.scale, map, 1));
    rows.store(kPrologueShift * maps + i, value(o.prologue.shift, map, 0));
    rows.store(kScale * maps + i, value(o.epilogue.affine.scale, map, 1));
    rows.store(kShift * maps + i, value(o.epilogue.affine.shift, map, 0));
  }
}

// What is staged of one thread's maps. The filters are not kept in registers: each read of a weight serves the thread's
// columns, and what is free keeps more rows of x under way. Nor are the moments of what it has written so far, which are
// behind all that is staged.
template <class Tile> class OwnMaps {
 public:
  __device__ OwnMaps(int lane, int lanes)
      : rows_(shared_memory<float>() + lane * Tile::kMaps), row_stride_(lanes * Tile::kMaps) {}
  __device__ Vector<float, Tile::kMaps> weights(int tap) const {
    return rows_.template load_vector<Tile::kMaps>(tap * row_stride_);
  }
  __device__ Vector<float, Tile::kMaps> operator[](Staged what) const { return weights(Tile::kFilterTaps + what); }
  __device__ MomentsOfMaps<Tile::kMaps> moments() const {
    MomentsOfMaps<Tile::kMaps> moments;
#pragma unroll
    for (int v = 0; v < Tile::kMaps; ++v) moments.at[v] = own_moments().load(v * kDepthwiseThreads);
    return moments;
  }
  __device__ void keep(const MomentsOfMaps<Tile::kMaps>& moments) const {
#pragma unroll
    for (int v = 0; v < Tile::kMaps; ++v) own_moments().store(v * kDepthwiseThreads, moments.at[v]);
  }

 private:
  __device__ Shared<Moments> own_moments() const {
    return shared_memory<Moments>(row_stride_ * (Tile::kFilterTaps + kStagedRows) * 4) + static_cast<int>(threadIdx.x);
  }

  Shared<float> rows_;
  int row_stride_;
};

// sums[i] is of the row of places i above the one whose first tap is in this group of kStep rows.
template <class Tile> struct Sums { float at[Tile::kReach][Tile::kParts][Tile::kWritten][Tile::kMaps]; };

// Adds what row j of a group of kStep rows gives to each place in its reach.
template <class T, class Tile>
__device__ void accumulate(Sums<Tile>& sums, const PixelRow<T, Tile::kRead, Tile::kMaps>& x, const OwnMaps<Tile>& own,
                           int j) {
#pragma unroll
  for (int i = Tile::kReach - 1; i >= 0; --i) {
#pragma unroll
    for (int part = 0; part < Tile::kParts * Tile::kParts; ++part) {
      const int a = part / Tile::kParts, b = part % Tile::kParts;
      const int at = i * Tile::kStep + j, r = Tile::tap(at, a);
      if (at >= Tile::kTaps || r >= Tile::kFilter) continue;
#pragma unroll
      for (int tap = 0; tap < Tile::kTaps; ++tap) {
        const int s = Tile::tap(tap, b);
        if (s >= Tile::kFilter) continue;
        const Vector<float, Tile::kMaps> weight = own.weights(r * Tile::kFilter + s);
#pragma unroll
        for (int q = 0; q < Tile::kColumns; ++q)
#pragma unroll
          for (int v = 0; v < Tile::kMaps; ++v)
            sums.at[i][a][q * Tile::kParts + b][v] += to_float(x.at[q * Tile::kStep + tap][v]) * weight[v];
      }
    }
  }
}

// Takes a row that is written into the thread's moments.
template <class T, class Tile>
__device__ void take(const float (&row)[Tile::kWritten][Tile::kMaps], uint32_t inside, const OwnMaps<Tile>& own) {
  MomentsOfMaps<Tile::kMaps> moments = own.moments();
#pragma unroll
  for (int q = 0; q < Tile::kWritten; ++q) {
    if (!(inside >> q & 1)) continue;
    Vector<T, Tile::kMaps> y;
#pragma unroll
    for (int v = 0; v < Tile::kMaps; ++v) y[v] = from_float<T>(row[q][v]);
    moments.add(y);
  }
  own.keep(moments);
}

// Writes one row of kWritten pixels, the first of which is in column `column` and may be outside, as may be the last.
template <class T, class Tile>
__device__ void write_row(const SweepParams<T>& o, float (&row)[Tile::kWritten][Tile::kMaps], int64_t first_pixel,
                          int column, int map, const OwnMaps<Tile>& own) {
  const uint32_t inside = columns_inside<Tile::kWritten>(column, o.to_w);
  const int64_t pixel = first_pixel + column;
  if constexpr (Tile::kParts == 1) {  // dgrad at stride 2 has no epilogue
    const Vector<float, Tile::kMaps> scale = own[kScale], shift = own[kShift];
#pragma unroll
    for (int q = 0; q < Tile::kWritten; ++q)
#pragma unroll
      for (int v = 0; v < Tile::kMaps; ++v) row[q][v] = row[q][v] * scale[v] + shift[v];
    if (o.epilogue.residual) {
      PixelRow<T, Tile::kWritten, Tile::kMaps> residual;
      residual.load(o.epilogue.residual + pixel * o.epilogue.residual_pixel_stride + map,
                    o.epilogue.residual_pixel_stride, inside, true);
#pragma unroll
      for (int q = 0; q < Tile::kWritten; ++q)
#pragma unroll
        for (int v = 0; v < Tile::kMaps; ++v) row[q][v] += to_float(residual.at[q][v]);
    }
    activate_tile(row, o.epilogue.affine.activation, o.epilogue.affine.alpha);
  }
  T* const to = o.to + pixel * o.to_pixel_stride + map;
#pragma unroll
  for (int q = 0; q < Tile::kWritten; ++q) {
    if (!(inside >> q & 1)) continue;
    Vector<T, Tile::kMaps> y;
#pragma unroll
    for (int v = 0; v < Tile::kMaps; ++v) y[v] = from_float<T>(row[q][v]);
    store_vector(to + q * o.to_pixel_stride, y);
  }
  if (Tile::kCounted && o.statistics) take<T, Tile>(row, inside, own);
}

// A thread's columns of a band, from its first row of places to its last.
template <class T, class Tile>
__device__ void sweep(const SweepParams<T>& o, int image, int band, int map, const OwnMaps<Tile>& own) {
  const int place_column = o.tiling.width.split(image) * Tile::kColumns;
  const int column = place_column * Tile::kStep - o.pad_left;
  const uint32_t columns_there = columns_inside<Tile::kRead>(column, o.from_w);
  const T* const from = o.from + (int64_t{image} * o.from_h * o.from_w + column) * o.from_pixel_stride + map;
  const int64_t row_stride = int64_t{o.from_w} * o.from_pixel_stride;

  const int first = band * o.band_rows, last = min(first + o.band_rows, o.place_rows);
  const auto load = [&](PixelRow<T, Tile::kRead, Tile::kMaps>& row, int h) {
    row.load(from + h * row_stride, o.from_pixel_stride, columns_there, h >= 0 && h < o.from_h);
  };
  int h = first * Tile::kStep - o.pad_top;
  PixelRow<T, Tile::kRead, Tile::kMaps> next;
  load(next, h);
  Sums<Tile> sums{};
#pragma unroll 1
  for (int place = first - (Tile::kReach - 1); place < last; ++place) {
#pragma unroll
    for (int j = 0; j < Tile::kStep; ++j, ++h) {
      PixelRow<T, Tile::kRead, Tile::kMaps> x = next;
      load(next, h + 1);
      if (o.has_prologue) x.apply(own[kPrologueScale], own[kPrologueShift], clamp_of(o.prologue.activation));
      if (h >= 0 && h < o.from_h) accumulate<T, Tile>(sums, x, own, j);
    }
    if (place >= first) {
#pragma unroll
      for (int a = 0; a < Tile::kParts; ++a) {
        const int row = place * Tile::kParts + a - o.origin_top;
        if (row < 0 || row >= o.to_h) continue;
        write_row<T, Tile>(o, sums.at[Tile::kReach - 1][a], (int64_t{image} * o.to_h + row) * o.to_w,
                           place_column * Tile::kParts - o.origin_left, map, own);
      }
    }
#pragma unroll
    for (int i = Tile::kReach - 1; i >= 0; --i)
#pragma unroll
      for (int a = 0; a < Tile::kParts; ++a)
#pragma unroll
        for (int q = 0; q < Tile::kWritten; ++q)
#pragma unroll
          for (int v = 0; v < Tile::kMaps; ++v) sums.at[i][a][q][v] = i > 0 ? sums.at[i - 1][a][q][v] : 0;
  }
}

// Merges the moments of a block's threads, and writes them.
template <class T, class Tile>
__device__ void store_statistics(const SweepParams<T>& o, const OwnMaps<Tile>& own, int64_t partial, int map, int group,
                                 int lane) {
  MomentsOfMaps<Tile::kMaps> moments = own.moments();
  __syncthreads();  // all that was in shared memory is read
  merge_rows(moments, group, o.tiling.block_groups, lane, o.tiling.lanes.divisor());
  if (group == 0 && map < o.maps) store_moments(o.statistics + partial * 3 * o.maps + map, o.maps, moments);
}

// grid: tiles of maps x bands of rows x groups of columns
template <class T, class Tile>
__global__ void __launch_bounds__(kDepthwiseThreads, Tile::kBlocks) depthwise_sweep(const SweepParams<T> o) {
  int block = blockIdx.x, group = threadIdx.x;
  const int lanes = o.tiling.lanes.divisor(), first_map = o.tiling.map_tiles.split(block) * lanes * Tile::kMaps;
  const int band = o.bands.split(block), lane = o.tiling.lanes.split(group), map = first_map + lane * Tile::kMaps;
  const OwnMaps<Tile> own(lane, lanes);
  stage<T, Tile>(o, first_map);
  if (Tile::kCounted && o.statistics) own.keep({});
  __syncthreads();  // what is staged is there for all

  const uint32_t columns = static_cast<uint32_t>(block) * o.tiling.block_groups + group;
  if (group < o.tiling.block_groups && map < o.maps && columns < static_cast<uint32_t>(o.tiling.groups))
    sweep<T, Tile>(o, static_cast<int>(columns), band, map, own);
  if (Tile::kCounted && o.statistics)
    store_statistics<T, Tile>(o, own, int64_t{block} * o.bands.divisor() + band, map, group, lane);
}

// Rows of a band: as many as leave 8 blocks for each of 132 multiprocessors, but not fewer than 4 times what two
// neighbouring bands both read.
inline int64_t band_rows(int64_t rows, int64_t blocks, int64_t reach) {
  constexpr int64_t kBlocks = 8 * 132;
  const int64_t bands = std::max<int64_t>(kBlocks / blocks, 1);
  return std::min(std::max((rows + bands - 1) / bands, 4 * reach), rows);
}

// How a problem is cut: blocks are tiles of maps x bands of rows x tiles of groups of columns.
template <class Tile> struct SweepCut {
  int64_t to_h, to_w;
  // In parts, places are counted from the first tap of the first window, which may be in the padding.
  int64_t origin_top, origin_left;
  int64_t place_rows, place_columns;
  DepthwiseTiling tiling;
  int64_t tiles, rows, bands;

  explicit SweepCut(const ConvProblem& p)
      : to_h(p.direction == Direction::fprop ? p.p() : p.h),
        to_w(p.direction == Direction::fprop ? p.q() : p.w),
        origin_top(Tile::kParts == 2 ? p.pad_top : 0),
        origin_left(Tile::kParts == 2 ? p.pad_left : 0),
        place_rows((to_h + origin_top + Tile::kParts - 1) / Tile::kParts),
        place_columns((to_w + origin_left + Tile::kParts - 1) / Tile::kParts),
        tiling(p.c, Tile::kMaps, p.n, place_columns, Tile::kColumns),
        tiles((tiling.groups + int64_t{tiling.block_groups} - 1) / tiling.block_groups),
        rows(band_rows(place_rows, tiles * tiling.map_tiles.divisor(), Tile::kReach)),
        bands((place_rows + rows - 1) / rows) {}
};

template <class Tile> int64_t sweep_partials(const ConvProblem& p) {
  const SweepCut<Tile> cut(p);
  return cut.tiles * cut.bands;
}

template <class T, class Tile> void run_sweep(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const bool fprop = p.direction == Direction::fprop;
  const auto whole = [](int64_t v) { return static_cast<int>(v); };
  const SweepCut<Tile> cut(p);
  const int64_t turned_top = Tile::kTaps - 1 - (Tile::kParts == 1 ? p.pad_top : 0);
  const int64_t turned_left = Tile::kTaps - 1 - (Tile::kParts == 1 ? p.pad_left : 0);
  const SweepParams<T> o{.from = static_cast<const T*>(fprop ? operands.x : operands.y),
                         .w = static_cast<const T*>(operands.w),
                         .to = static_cast<T*>(fprop ? operands.y : operands.x),
                         .prologue = prologue_of<T>(p, operands),
                         .has_prologue = p.prologue != Prologue{},
                         .epilogue = epilogue_of<T>(p, operands),
                         .statistics = fprop ? operands.statistics : nullptr,
                         .from_pixel_stride = whole(fprop ? p.x_stride() : p.y_stride()),
                         .to_pixel_stride = whole(fprop ? p.y_stride() : p.x_stride()),
                         .tiling = cut.tiling,
                         .bands = Divider(cut.bands),
                         .band_rows = whole(cut.rows),
                         .place_rows = whole(cut.place_rows),
                         .maps = whole(p.c),
                         .from_h = whole(fprop ? p.h : p.p()),
                         .from_w = whole(fprop ? p.w : p.q()),
                         .to_h = whole(cut.to_h),
                         .to_w = whole(cut.to_w),
                         .pad_top = whole(fprop ? p.pad_top : turned_top),
                         .pad_left = whole(fprop ? p.pad_left : turned_left),
                         .origin_top = whole(cut.origin_top),
                         .origin_left = whole(cut.origin_left),
                         .turned = !fprop && Tile::kParts == 1};
  const int staged = cut.tiling.lanes.divisor() * Tile::kMaps * (Tile::kFilterTaps + kStagedRows);
  const int moments = o.statistics ? kDepthwiseThreads * static_cast<int>(sizeof(MomentsOfMaps<Tile::kMaps>)) : 0;
  const Grid grid{.x = cut.tiling.map_tiles.divisor() * cut.bands * cut.tiles,
                  .threads = kDepthwiseThreads,
                  .shared_bytes = staged * static_cast<int>(sizeof(float)) + moments};
  launch(depthwise_sweep<T, Tile>, grid, o, call);
}

template <class Tile> std::string why_not_swept(const ConvProblem& p, const Flags& flags) {
  return not_swept(p, Tile::kFilter, Tile::kStep * Tile::kParts, Tile::kMaps, flags);
}

// A thread's pixels side by side x the filter's size x the stride, as a kernel's name has it.
template <class Tile> std::string sweep_name() {
  return std::to_string(Tile::kWritten) + "x" + std::to_string(Tile::kFilter) + "x" +
         std::to_string(Tile::kStep * Tile::kParts);
}

template <class T, class Tile> void append_sweep(KernelList& list, Direction direction) {
  list.push_back({.name = kernel_name("depthwise", direction, kDTypeOf<T>, sweep_name<Tile>()),
                  .why_not = why_not_swept<Tile>,
                  .rather_not = nullptr,
                  .workspace_bytes = nullptr,
                  .run = run_sweep<T, Tile>,
                  .partials = Tile::kCounted && direction == Direction::fprop ? sweep_partials<Tile> : nullptr});
}

}  // namespace cnnkern::cuda
