#include "conv_gemm.h"

#include <bit>
#include <utility>

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

// Register tiles, rows x vectors: as many accumulators as leave room for a row of weights and one value of x.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr TileShape kShapes[] = {{6, 4}, {7, 3}, {14, 2}};
#else
constexpr TileShape kShapes[] = {{6, 2}, {4, 3}};
#endif
constexpr int kMaxRows = kShapes[std::size(kShapes) - 1].rows > 6 ? kShapes[std::size(kShapes) - 1].rows : 6;
constexpr int kMaxVectors = 4;

constexpr bool has_tile(int rows, int vectors) {
  for (TileShape shape : kShapes)
    if (rows <= shape.rows && vectors <= shape.vectors) return true;
  return false;
}

template <class In, class Out> using TileFunction = void (*)(const Tile<In, Out>&, const EpilogueArgs<Out>&);

template <class In, class Out, int kIndex> constexpr TileFunction<In, Out> tile_function() {
  constexpr int kRows = kIndex / kMaxVectors + 1, kVectors = kIndex % kMaxVectors + 1;
  if constexpr (has_tile(kRows, kVectors)) return brgemm_tile<In, Out, kRows, kVectors>;
  else return nullptr;
}

template <class In, class Out> struct TileTable {
  TileFunction<In, Out> functions[kMaxRows * kMaxVectors];
  template <int... kIndex>
  constexpr explicit TileTable(std::integer_sequence<int, kIndex...>) : functions{tile_function<In, Out, kIndex>()...} {}
  TileFunction<In, Out> operator()(int rows, int vectors) const {
    return functions[(rows - 1) * kMaxVectors + vectors - 1];
  }
};
template <class In, class Out>
constexpr TileTable<In, Out> kTiles{std::make_integer_sequence<int, kMaxRows * kMaxVectors>{}};

// --- the cut: the cheapest tile and split under a model that counts cycles of the busiest thread ----------------------

// One step of the reduction in a tile: FMAs, loads (one a cycle, like FMAs) or the FMA's latency, whichever is most.
constexpr double step_cycles(int rows, int vectors) {
  constexpr int kLatency = kVectorBytes == 64 ? 4 : 8;
  return std::max({rows * vectors, rows + vectors, kLatency});
}

double points_cycles(int64_t points, int rows, int vectors) {
  const int rest = static_cast<int>(points % rows);
  return (points / rows) * step_cycles(rows, vectors) + (rest ? step_cycles(rest, vectors) : 0);
}

// depth: steps per point, all taps together.
double cut_cycles(TileShape tile, bool split_panels, int64_t points, int64_t columns, double depth, int64_t threads,
                  int lanes) {
  constexpr double kPackCycles = 0.5;       // a step of one column
  constexpr double kTileCycles = 60;        // pointers, write-back
  constexpr double kRegionCycles = 10000;   // one more fork and join
  const int64_t width = tile.vectors * lanes;
  const int64_t panels = (columns + width - 1) / width;
  const int last_vectors = static_cast<int>((columns - (panels - 1) * width + lanes - 1) / lanes);
  const int64_t my_points = split_panels ? points : (points + threads - 1) / threads;
  const double my_tiles = static_cast<double>((my_points + tile.rows - 1) / tile.rows);
  const double full = points_cycles(my_points, tile.rows, tile.vectors) * depth + my_tiles * kTileCycles;
  const double last = points_cycles(my_points, tile.rows, last_vectors) * depth + my_tiles * kTileCycles;
  if (!split_panels)
    return (panels - 1) * full + last + columns * depth * kPackCycles / threads + (threads > 1 ? kRegionCycles : 0);
  const int64_t my_panels = (panels + threads - 1) / threads;
  return (my_panels - (panels % threads == 1 || threads == 1)) * full +
         (panels % threads == 1 || threads == 1 ? last : 0) + my_panels * width * depth * kPackCycles;
}

GemmCut choose_cut(int64_t points, int64_t columns, double depth, int64_t threads, int lanes, int64_t row_bytes) {
  GemmCut best{kShapes[0], false};
  double best_cycles = std::numeric_limits<double>::infinity();
  for (TileShape tile : kShapes) {
    // More rows than an L1 set has ways, a multiple of 4 KiB apart, evict each other.
    if (tile.rows > 8 && row_bytes % 4096 == 0) continue;
    for (bool split_panels : {false, true}) {
      const double cycles = cut_cycles(tile, split_panels, points, columns, depth, threads, lanes);
      if (cycles < best_cycles) best_cycles = cycles, best = {tile, split_panels};
    }
  }
  return best;
}

// --- a block of points: their pointers, and the order that lets tiles skip taps in the padding -------------------------

// The taps of a row or column of points that fall inside the input, as classes of equal sets.
struct Classes {
  std::vector<int> of;             // class of each row (column)
  std::vector<uint64_t> taps;      // taps of each class, a bit each; all set beyond 64 taps
};

// Classes of the points i < count along one dimension of the input, `size` long.
template <class Offset>
Classes classify(int64_t count, int64_t in_step, int64_t size, const std::vector<Tap>& taps, Offset offset) {
  Classes classes;
  classes.of.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t inside = 0;
    for (size_t t = 0; t < taps.size(); ++t) {
      const int64_t at = i * in_step + offset(taps[t]);
      if (at >= 0 && at < size) inside |= uint64_t{1} << t;
    }
    auto found = std::find(classes.taps.rbegin(), classes.taps.rend(), inside);
    if (found == classes.taps.rend()) classes.taps.push_back(inside), found = classes.taps.rbegin();
    classes.of.push_back(static_cast<int>(classes.taps.rend() - found) - 1);
  }
  return classes;
}

constexpr int kMaskTaps = 64;
constexpr int64_t kPointerBytes = 96 * 1024;  // the pointers of a block stay in L2, beside a panel
constexpr int64_t kMaxPoints = 504;           // a multiple of 6, 7, 14 and 4

template <class In, class Out> class Block {
 public:
  Block(const Gemm<In, Out>& gemm, const Lattice& lattice, int rows)
      : gemm_(gemm), lattice_(lattice), tile_rows_(rows), masked_(lattice.taps.size() <= kMaskTaps) {
    const int64_t taps = static_cast<int64_t>(lattice.taps.size());
    capacity_ = std::clamp<int64_t>(kPointerBytes / 8 / std::max<int64_t>(taps, 1) / rows * rows, rows, kMaxPoints / rows * rows);
    if (masked_) {
      row_classes_ = classify(lattice.rows, lattice.in_step_h, gemm.in_h, lattice.taps, [](const Tap& t) { return t.h; });
      col_classes_ = classify(lattice.cols, lattice.in_step_w, gemm.in_w, lattice.taps, [](const Tap& t) { return t.w; });
    }
    points_.resize(capacity_);
    pixels_.resize(capacity_);
    pointers_.resize(capacity_ * taps);
    offsets_.resize((capacity_ / rows) * taps);
    tile_taps_.resize(capacity_ / rows);
    zeros_.assign(gemm.depth, In{});
    for (const Tap& tap : lattice.taps) tap_offsets_.push_back((tap.h * gemm.in_w + tap.w) * gemm.x_pixel_stride);
  }

  int64_t capacity() const { return capacity_; }

  // Lays out points [begin, begin + count).
  void fill(int64_t begin, int64_t count) {
    count_ = count;
    order(begin);
    const int64_t taps = static_cast<int64_t>(lattice_.taps.size());
    for (int64_t first = 0, tile = 0; first < count; first += tile_rows_, ++tile) {
      const int rows = static_cast<int>(std::min<int64_t>(tile_rows_, count - first));
      const Point* points = &points_[first];
      const In** pointer = &pointers_[first * taps];
      int64_t* offset = &offsets_[tile * taps];
      uint64_t any = 0;
      for (int i = 0; i < rows; ++i) any |= points[i].inside;
      for (int64_t t = 0; t < taps; ++t) {
        if (masked_ && !(any >> t & 1)) continue;
        for (int i = 0; i < rows; ++i)
          *pointer++ = inside(points[i], t) ? gemm_.x + points[i].origin + tap_offsets_[t] : zeros_.data();
        *offset++ = lattice_.taps[t].offset;
      }
      tile_taps_[tile] = offset - &offsets_[tile * taps];
    }
  }

  // Multiplies the block with one panel.
  void multiply(const typename Gemm<In, Out>::Packed* panel, int64_t column, int columns, int vectors) const {
    const int64_t taps = static_cast<int64_t>(lattice_.taps.size());
    Tile<In, Out> tile{};
    tile.depth = gemm_.depth;
    tile.panel = panel;
    tile.y = gemm_.y + column;
    tile.y_pixel_stride = gemm_.y_pixel_stride;
    tile.column = column;
    tile.columns = columns;
    for (int64_t first = 0, index = 0; first < count_; first += tile_rows_, ++index) {
      const int rows = static_cast<int>(std::min<int64_t>(tile_rows_, count_ - first));
      tile.taps = tile_taps_[index];
      tile.rows = pointers_.data() + first * taps;
      tile.tap_offsets = offsets_.data() + index * taps;
      tile.pixels = pixels_.data() + first;
      kTiles<In, Out>(rows, vectors)(tile, gemm_.epilogue);
    }
  }

 private:
  struct Point {
    int64_t origin;    // element of x that tap (0, 0) reads
    int64_t h, w;      // its input pixel
    uint64_t inside;   // taps inside the input, where there are at most 64
  };

  bool inside(const Point& point, int64_t t) const {
    if (masked_) return point.inside >> t & 1;
    const int64_t h = point.h + lattice_.taps[t].h, w = point.w + lattice_.taps[t].w;
    return h >= 0 && h < gemm_.in_h && w >= 0 && w < gemm_.in_w;
  }

  // Fills points_ and pixels_, points with the same taps side by side.
  void order(int64_t begin) {
    const int64_t per_image = lattice_.rows * lattice_.cols;
    int64_t n = begin / per_image, i = begin % per_image / lattice_.cols, j = begin % lattice_.cols;
    const size_t col_count = col_classes_.taps.size();
    std::vector<int>& slots = slots_;
    if (masked_) {
      slots.assign(row_classes_.taps.size() * col_count + 1, 0);
      int64_t row = i, col = j;
      for (int64_t k = 0; k < count_; ++k) {
        ++slots[col_classes_.of[col] + row_classes_.of[row] * col_count + 1];
        if (++col == lattice_.cols) col = 0, row = row + 1 == lattice_.rows ? 0 : row + 1;
      }
      for (size_t s = 1; s < slots.size(); ++s) slots[s] += slots[s - 1];
    }
    for (int64_t k = 0; k < count_; ++k) {
      int64_t at = k;
      uint64_t inside = 0;
      if (masked_) {
        const int row_class = row_classes_.of[i], col_class = col_classes_.of[j];
        at = slots[col_class + row_class * col_count]++;
        inside = row_classes_.taps[row_class] & col_classes_.taps[col_class];
      }
      const int64_t h = i * lattice_.in_step_h, w = j * lattice_.in_step_w;
      points_[at] = {((n * gemm_.in_h + h) * gemm_.in_w + w) * gemm_.x_pixel_stride, h, w, inside};
      pixels_[at] = (n * gemm_.out_h + lattice_.first_h + i * lattice_.step_h) * gemm_.out_w + lattice_.first_w +
                    j * lattice_.step_w;
      if (++j == lattice_.cols) j = 0, i = i + 1 == lattice_.rows ? (++n, 0) : i + 1;
    }
  }

  const Gemm<In, Out>& gemm_;
  const Lattice& lattice_;
  const int tile_rows_;
  const bool masked_;
  int64_t capacity_ = 0, count_ = 0;
  Classes row_classes_, col_classes_;
  std::vector<Point> points_;
  std::vector<int64_t> pixels_, offsets_, tile_taps_, tap_offsets_;
  std::vector<const In*> pointers_;
  std::vector<In> zeros_;
  std::vector<int> slots_;
};

}  // namespace

template <class In, class Out> void Gemm<In, Out>::run(std::span<const Lattice> lattices) const {
  constexpr int kLane = kLanes<Out>;
  int64_t points = 0;
  double steps = 0;
  for (const Lattice& lattice : lattices) {
    const int64_t count = images * lattice.rows * lattice.cols;
    points += count;
    steps += static_cast<double>(count) * lattice.taps.size() * (depth / Step<In>::kDepth);
  }
  if (points == 0 || columns == 0) return;
  const int64_t threads = thread_count();
  const GemmCut cut =
      choose_cut(points, columns, steps / points, threads, kLane, x_pixel_stride * static_cast<int64_t>(sizeof(In)));
  const int64_t width = cut.tile.vectors * kLane;
  const int64_t panels = (columns + width - 1) / width;

  const auto panel_columns = [&](int64_t panel) { return static_cast<int>(std::min(width, columns - panel * width)); };
  const auto panel_vectors = [&](int64_t panel) { return (panel_columns(panel) + kLane - 1) / kLane; };
  const auto pack_panel = [&](int64_t panel, Packed* out) {
    (*pack)(panel * width, panel_columns(panel), out, panel_vectors(panel) * kLane);
  };
  const auto multiply = [&](Block<In, Out>& block, int64_t begin, int64_t end, int64_t first_panel, int64_t last_panel,
                            const Packed* packed) {
    for (; begin < end; begin += block.capacity()) {
      block.fill(begin, std::min(block.capacity(), end - begin));
      for (int64_t panel = first_panel; panel < last_panel; ++panel)
        block.multiply(packed + (panel - first_panel) * width * packed_depth, panel * width, panel_columns(panel),
                       panel_vectors(panel));
    }
  };

  if (cut.split_panels) {
    parallel_for(panels, 1, [&](int64_t first, int64_t last) {
      Packed* packed = scratch<Packed>(Scratch::packed, width * packed_depth);
      for (int64_t panel = first; panel < last; ++panel) {
        pack_panel(panel, packed);
        for (const Lattice& lattice : lattices) {
          Block<In, Out> block(*this, lattice, cut.tile.rows);
          multiply(block, 0, images * lattice.rows * lattice.cols, panel, panel + 1, packed);
        }
      }
    });
    return;
  }
  Packed* packed = scratch<Packed>(Scratch::packed, panels * width * packed_depth);
  parallel_for(panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) pack_panel(panel, packed + panel * width * packed_depth);
  });
  for (const Lattice& lattice : lattices) {
    const int64_t count = images * lattice.rows * lattice.cols;
    const int64_t tiles = (count + cut.tile.rows - 1) / cut.tile.rows;
    parallel_for(tiles, 1, [&](int64_t first, int64_t last) {
      Block<In, Out> block(*this, lattice, cut.tile.rows);
      multiply(block, first * cut.tile.rows, std::min(count, last * cut.tile.rows), 0, panels, packed);
    });
  }
}

#if defined(__AVX512BF16__)
template struct Gemm<bf16, bf16>;
#else
template struct Gemm<float, float>;
template struct Gemm<double, double>;
template struct Gemm<float, bf16>;
template struct Gemm<float, f16>;
#endif

}  // namespace cnnkern::cpu::CNNKERN_ISA
