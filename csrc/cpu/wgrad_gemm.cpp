#include "wgrad_gemm.h"

#include <algorithm>
#include <utility>

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

constexpr int kVectors = kWgradVectors, kMostRows = 14;
constexpr int64_t kMaxCopyBytes = 4 << 20;  // of dw, for one copy a thread
// Where dw stays in L2, this and the next chunk of both operands do too. Measured over ten layers with one thread:
// 256 KiB is within 1% of 128 and of 384, and 6% faster than 768.
constexpr int64_t kCachedBytes = 256 * 1024, kChunkBytes = 256 * 1024;
// Else a chunk reads and writes dw in L3 and repays that with more pixels: a panel of 64 fp32 columns of x is 512 KiB.
constexpr int64_t kChunkPixels = 2048;
constexpr int64_t kRepay = 24;  // an operand is packed where so many tiles read each of its panels

template <class A, int kIndex> constexpr WgradTileFunction<A> tile_function() {
  constexpr int rows = kIndex / kVectors + 1, vectors = kIndex % kVectors + 1;
  if constexpr (rows <= wgrad_rows(vectors)) return wgrad_tile<A, rows, vectors>;
  else return nullptr;
}

template <class A> struct TileTable {
  WgradTileFunction<A> functions[kMostRows * kVectors];
  template <int... kIndex>
  constexpr explicit TileTable(std::integer_sequence<int, kIndex...>) : functions{tile_function<A, kIndex>()...} {}
  WgradTileFunction<A> operator()(int rows, int vectors) const {
    return functions[(rows - 1) * kVectors + vectors - 1];
  }
};
template <class A> constexpr TileTable<A> kTiles{std::make_integer_sequence<int, kMostRows * kVectors>{}};

// What of two pieces of memory is still to be fetched into cache.
class Fetch {
 public:
  template <class T> void add(const PixelRows<T>& rows, int64_t first, int64_t last) {
    if (first >= last) return;
    const T* begin = rows.row(first);
    pieces[count++] = {reinterpret_cast<const char*>(begin),
                       (rows.row(last - 1) + rows.row_stride - begin) * static_cast<int64_t>(sizeof(T)) / kCacheLine};
  }
  // The first of the next `n` lines; null where none are left.
  const char* take(int64_t n) {
    while (at < count && pieces[at].lines <= 0) ++at;
    if (at == count) return nullptr;
    Piece& piece = pieces[at];
    const char* first = piece.begin;
    piece.begin += n * kCacheLine, piece.lines -= n;
    return first;
  }

 private:
  struct Piece {
    const char* begin;
    int64_t lines;
  };
  Piece pieces[2];
  int count = 0, at = 0;
};

}  // namespace

// Whether fewer FMAs are needed with vectors of dy.
template <class T> bool WgradGemm<T>::vectors_of_dy() const {
  return x.maps * ceil_div(dy.maps, kLanes<T>) < dy.maps * ceil_div(x.maps, kLanes<T>);
}

template <class T> bool WgradGemm<T>::cached() const {
  return static_cast<int64_t>(taps.size() * sizeof(A)) * dy.maps * x.maps <= kCachedBytes;
}

template <class T> int64_t WgradGemm<T>::rows_per_chunk() const {
  if (!cached()) return kChunkPixels / (x.width * in_step_h);
  return kChunkBytes / ((x.row_stride * in_step_h + dy.row_stride) * static_cast<int64_t>(sizeof(A)));
}

template <class T> std::pair<WgradPanels<T>, WgradPanels<T>> WgradGemm<T>::panels() const {
  constexpr int kLane = kLanes<T>;
  const bool swapped = vectors_of_dy();
  const PixelRows<T>&a = swapped ? x : dy, &b = swapped ? dy : x;
  const RowStaging<A>*a_staging = swapped ? x_staging : nullptr, *b_staging = swapped ? nullptr : x_staging;
  // Panels are equally wide; the fewer vectors, the more scalars make a tile.
  const int64_t vectors = ceil_div(b.maps, kLane), b_panels = ceil_div(vectors, kVectors);
  const int64_t b_width = ceil_div(vectors, b_panels) * kLane;
  const int64_t a_panels = ceil_div(a.maps, wgrad_rows(static_cast<int>(b_width / kLane)));
  const int64_t a_width = ceil_div(a.maps, a_panels);
  const int64_t tap_count = static_cast<int64_t>(taps.size());
  const int64_t a_tiles = b_panels * tap_count, b_tiles = a_panels * tap_count;
  constexpr bool kConvert = !std::is_same_v<A, T>;
  const bool pack_a = kConvert || !cached() || a_tiles >= kRepay;
  const bool pack_b = kConvert || b.maps % kLane || (b.pixel_stride > b_width && b_tiles >= kRepay);
  return {WgradPanels<T>(a, a_width, !a_staging && pack_a, a_staging),
          WgradPanels<T>(b, b_width, !b_staging && pack_b, b_staging)};
}

template <class T> void WgradGemm<T>::sum_rows(int64_t begin_row, int64_t end_row) const {
  const int64_t tap_count = static_cast<int64_t>(taps.size());
  const bool swapped = vectors_of_dy();
  auto [a, b] = panels();
  WgradPanels<T>&of_dy = swapped ? b : a, &of_x = swapped ? a : b;
  const auto pair_of = [&](int64_t dy_offset, int64_t x_offset) {
    return swapped ? PixelPair{static_cast<int32_t>(x_offset), static_cast<int32_t>(dy_offset)}
                   : PixelPair{static_cast<int32_t>(dy_offset), static_cast<int32_t>(x_offset)};
  };

  // Input rows, counted over all images, from the first to the last that a chunk reads.
  const auto [low, high] = std::minmax_element(taps.begin(), taps.end(), [](auto& l, auto& r) { return l.h < r.h; });
  const auto input_row = [&](int64_t row, int64_t h) {
    return row / dy.height * x.height + std::clamp<int64_t>(row % dy.height * in_step_h + h, 0, x.height - 1);
  };
  const auto x_first = [&, h = low->h](int64_t begin) { return input_row(begin, h); };
  const auto x_last = [&, h = high->h](int64_t end) { return input_row(end - 1, h) + 1; };

  const int64_t chunk_rows = std::clamp<int64_t>(rows_per_chunk(), 1, end_row - begin_row);
  std::vector<int64_t> pair_count(tap_count);
  for (int64_t begin = begin_row; begin < end_row; begin += chunk_rows) {
    const int64_t end = std::min(end_row, begin + chunk_rows), next_end = std::min(end_row, end + chunk_rows);
    of_dy.load_chunk(begin, end, Scratch::packed_dy);
    of_x.load_chunk(x_first(begin), x_last(end), Scratch::packed);

    const int64_t most_pairs = of_dy.pixels();
    PixelPair* pairs = scratch<PixelPair>(Scratch::pairs, most_pairs * tap_count);
    const PixelPair step = pair_of(of_dy.pixel_stride(), in_step_w * of_x.pixel_stride());
    for (int64_t t = 0; t < tap_count; ++t) {
      PixelPair* pair = pairs + t * most_pairs;
      // Output columns whose input column exists.
      const int64_t first_q = ceil_div(std::max<int64_t>(-taps[t].w, 0), in_step_w);
      const int64_t last_q = std::min(dy.width, ceil_div(std::max<int64_t>(x.width - taps[t].w, 0), in_step_w));
      for (int64_t row = begin; row < end; ++row) {
        const int64_t h = row % dy.height * in_step_h + taps[t].h;
        if (h < 0 || h >= x.height) continue;
        const int64_t x_row = of_x.row_offset(row / dy.height * x.height + h);
        PixelPair at = pair_of(of_dy.row_offset(row) + first_q * of_dy.pixel_stride(),
                               x_row + (first_q * in_step_w + taps[t].w) * of_x.pixel_stride());
        for (int64_t q = first_q; q < last_q; ++q, at.a += step.a, at.b += step.b) *pair++ = at;
      }
      pair_count[t] = pair - (pairs + t * most_pairs);
    }

    const bool add = begin > begin_row || accumulate;
    parallel_for(b.count * tap_count * a.count, 1, [&](int64_t first, int64_t last) {
      Fetch next;
      if (cached() && next_end > end) {
        next.add(dy, end, next_end);
        next.add(x, of_x.last, x_last(next_end));
      }
      for (int64_t item = first; item < last; ++item) {
        const int64_t i = item % a.count, t = item / a.count % tap_count, j = item / a.count / tap_count;
        const int columns = b.maps_of(j);
        kTiles<A>(a.maps_of(i), static_cast<int>(ceil_div(columns, kLanes<T>)))(
            pair_count[t], pairs + t * most_pairs, a.panel(i), b.panel(j), next.take(pair_count[t]),
            dw + i * a.width * dw_row_stride + taps[t].offset + j * b.width, dw_row_stride, columns, add);
      }
    });
    if (dbias) {
      parallel_for(dy.maps, 64, [&](int64_t first, int64_t last) {
        if (!add) std::fill(dbias + first, dbias + last, A{});
        for (int64_t row = begin; row < end; ++row)
          for (int64_t q = 0; q < dy.width; ++q)
            for (int64_t k = first; k < last; ++k) dbias[k] += to_acc(dy.row(row)[q * dy.pixel_stride + k]);
      });
    }
  }
}

template <class T> void WgradGemm<T>::run() const {
  const int64_t output_rows = images * dy.height, tap_size = dy.maps * x.maps;
  const int64_t size = static_cast<int64_t>(taps.size()) * tap_size;
  int64_t copies = std::min(thread_count(), output_rows);
  if (copies * size * static_cast<int64_t>(sizeof(A)) > kMaxCopyBytes) copies = 1;
  const bool swapped = vectors_of_dy();
  if (copies == 1 && !swapped) return sum_rows(0, output_rows);

  // A copy has dw as [tap][k][c], or [tap][c][k] where dy gives the vectors, and dbias behind it.
  const int64_t stride = size + dy.maps;
  A* sums = scratch<A>(Scratch::sums, copies * stride);
  WgradGemm part = *this;
  part.accumulate = false;
  part.dw_row_stride = swapped ? dy.maps : x.maps;
  for (size_t t = 0; t < taps.size(); ++t) part.taps[t].offset = static_cast<int64_t>(t) * tap_size;
  const auto sum_copy = [&](int64_t copy) {
    WgradGemm mine = part;
    mine.dw = sums + copy * stride;
    if (dbias) mine.dbias = mine.dw + size;
    mine.sum_rows(output_rows * copy / copies, output_rows * (copy + 1) / copies);
  };
  if (copies == 1) sum_copy(0);
  else
    parallel_for(copies, 1, [&](int64_t first, int64_t last) {
      for (int64_t copy = first; copy < last; ++copy) sum_copy(copy);
    });

  const auto reduce = [&](A* to, const A* from, int64_t count, int64_t step) {
    if (!accumulate) std::fill_n(to, count, A{});
    for (int64_t copy = 0; copy < copies; ++copy)
      for (int64_t i = 0; i < count; ++i) to[i] += from[copy * stride + i * step];
  };
  parallel_for(dy.maps, std::max<int64_t>(1, 32768 * dy.maps / size), [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k)
      for (size_t t = 0; t < taps.size(); ++t) {
        A* to = dw + k * dw_row_stride + taps[t].offset;
        const A* from = sums + part.taps[t].offset;
        if (swapped) reduce(to, from + k, x.maps, dy.maps);
        else reduce(to, from + k * x.maps, x.maps, 1);
      }
  });
  if (dbias) reduce(dbias, sums + size, dy.maps, 1);
}

template <class A> WgradTileFunction<A> wgrad_register_tile(int rows, int vectors) { return kTiles<A>(rows, vectors); }

template struct WgradGemm<bf16>;
#if !defined(__AVX512BF16__)
template WgradTileFunction<float> wgrad_register_tile<float>(int rows, int vectors);
template struct WgradGemm<float>;
template struct WgradGemm<double>;
template struct WgradGemm<f16>;
#endif

}  // namespace cnnkern::cpu::CNNKERN_ISA
