#include "conv_gemm.h"

#include <utility>

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

struct TileShape { int rows, vectors; };

// What the threads divide among them. points: all pack the weights, then each takes some points; points_packing: each
// packs all weights for itself; panels: each packs and multiplies some panels.
enum class Split { points, points_packing, panels };

struct GemmCut {
  TileShape tile;
  Split split;
};

// Register tiles, rows x vectors: as many accumulators as leave room for a row of weights and one value of x.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr TileShape kShapes[] = {{kWideTileRows, kWideTileVectors}, {7, 3}, {14, 2}};
#else
constexpr TileShape kShapes[] = {{kWideTileRows, kWideTileVectors}, {4, 3}};
#endif
constexpr int kMaxRows = kShapes[std::size(kShapes) - 1].rows > 6 ? kShapes[std::size(kShapes) - 1].rows : 6;
constexpr int kMaxVectors = 4;

constexpr bool has_tile(int rows, int vectors) {
  for (TileShape shape : kShapes)
    if (rows <= shape.rows && vectors <= shape.vectors) return true;
  return false;
}

template <class In, class Out, int kIndex> constexpr TileFunction<In, Out> tile_function() {
  constexpr int kRows = kIndex / kMaxVectors + 1, kVectors = kIndex % kMaxVectors + 1;
  if constexpr (has_tile(kRows, kVectors)) return brgemm_tile<In, Out, kRows, kVectors>;
  else return nullptr;
}

template <class In, class Out> struct TileTable {
  TileFunction<In, Out> functions[kMaxRows * kMaxVectors];
  template <int... kIndex>
  constexpr explicit TileTable(std::integer_sequence<int, kIndex...>)
      : functions{tile_function<In, Out, kIndex>()...} {}
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
double cut_cycles(TileShape tile, Split split, int64_t points, int64_t columns, double depth, int64_t threads,
                  int lanes) {
  constexpr double kPackCycles = 0.5;  // a step of one column
  constexpr double kTileCycles = 60;   // the loops' ends and the write-back, more for more rows
  constexpr double kPointCycles = 6;
  constexpr double kRegionCycles = 10000;   // one more fork and join
  constexpr double kSharedPageCycles = 10;  // a page of y that all threads write: where it is new, each faults on it
  constexpr double kSharedCycles = 5;       // a step of one column that another thread has packed, into its own cache
  constexpr double kReadCycles = 0.05;      // an element of x that is read once more: the tiles hide most of it
  const int64_t width = tile.vectors * lanes;
  const int64_t panels = (columns + width - 1) / width;
  const int last_vectors = static_cast<int>((columns - (panels - 1) * width + lanes - 1) / lanes);
  const int64_t my_points = split == Split::panels ? points : (points + threads - 1) / threads;
  const double tiles =
      static_cast<double>((my_points + tile.rows - 1) / tile.rows) * kTileCycles + my_points * kPointCycles;
  const double full = points_cycles(my_points, tile.rows, tile.vectors) * depth + tiles;
  const double last = points_cycles(my_points, tile.rows, last_vectors) * depth + tiles;
  if (split == Split::panels) {
    const int64_t mine = (panels + threads - 1) / threads;  // the first thread's, no fewer than another's
    const double with_last = mine == panels ? last : full;
    const double pages = static_cast<double>(points) * columns / lanes * kVectorBytes / 4096 * (threads > 1);
    const double reads = (mine - 1.0 / threads) * points * depth;
    return (mine - 1) * full + with_last + mine * width * depth * kPackCycles + pages * kSharedPageCycles +
           reads * kReadCycles;
  }
  const double steps = columns * depth;
  if (split == Split::points_packing) return (panels - 1) * full + last + steps * kPackCycles;
  const double others = steps * (threads - 1) / threads;
  return (panels - 1) * full + last + (steps - others) * kPackCycles + others * kSharedCycles +
         kRegionCycles * (threads > 1);
}

GemmCut choose_cut(int64_t lattices, int64_t points, int64_t columns, double depth, int64_t threads, int lanes,
                   int64_t row_bytes) {
  GemmCut best{kShapes[0], Split::points};
  double best_cycles = std::numeric_limits<double>::infinity();
  for (TileShape tile : kShapes) {
    // More rows than an L1 set has ways, a multiple of 4 KiB apart, evict each other.
    if (tile.rows > 8 && row_bytes % 4096 == 0) continue;
    for (Split split : {Split::points, Split::points_packing, Split::panels}) {
      if (split == Split::points_packing && lattices > 1) continue;  // a thread may have no points of the first
      const double cycles = cut_cycles(tile, split, points, columns, depth, threads, lanes);
      if (cycles < best_cycles) best_cycles = cycles, best = {tile, split};
    }
  }
  return best;
}

// --- a block of points: their pointers, and the order that lets tiles skip taps in the padding -------------------------

// The taps of a row or column of points that fall inside the input, as classes of equal sets.
struct Classes {
  std::vector<int> of;         // class of each row (column)
  std::vector<uint64_t> taps;  // taps of each class, a bit each
};

constexpr size_t kMaskTaps = 64;  // what fits a class; a filter of more taps is checked pixel by pixel

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

// How the taps of a lattice meet the padding.
struct Border {
  enum { none, classes, pixels } kind;
  Classes rows, cols;  // for `classes`

  Border(const Lattice& lattice, int64_t in_h, int64_t in_w) : kind(none) {
    const int64_t last_h = (lattice.rows - 1) * lattice.in_step_h, last_w = (lattice.cols - 1) * lattice.in_step_w;
    for (const Tap& tap : lattice.taps)
      if (tap.h < 0 || tap.h + last_h >= in_h || tap.w < 0 || tap.w + last_w >= in_w) kind = classes;
    if (kind == none) return;
    if (lattice.taps.size() > kMaskTaps) {
      kind = pixels;
      return;
    }
    rows = classify(lattice.rows, lattice.in_step_h, in_h, lattice.taps, [](const Tap& t) { return t.h; });
    cols = classify(lattice.cols, lattice.in_step_w, in_w, lattice.taps, [](const Tap& t) { return t.w; });
  }
};

// From this size on y is fetched tile by tile ahead of its stores, which else fill the store queue while they wait for
// it: with one thread of a Zen 4 core (1 MB of L2, 32 MB of L3) 16% faster for 1x1 filters from 64 to 256 maps with 13 MB
// of y, 5% with 6 MB and 1% slower with 3 MB.
constexpr int64_t kFetchBytes = 6 << 20;
constexpr int64_t kPointerBytes = 96 * 1024;  // the pointers of a block stay in L2, beside a panel
constexpr int64_t kMaxPoints = 504;           // a multiple of 4, 6, 7 and 14

template <class In, class Out> class Block {
 public:
  Block(const Gemm<In, Out>& gemm, const Lattice& lattice, const Border& border, int rows)
      : gemm_(gemm),
        lattice_(lattice),
        border_(border),
        tile_rows_(rows),
        taps_(lattice.taps.size()),
        shared_(border.kind == Border::none),
        fetch_(gemm.images * gemm.out_h * gemm.out_w * gemm.y_pixel_stride * int64_t{sizeof(Out)} >= kFetchBytes) {
    const int64_t most = kPointerBytes / static_cast<int64_t>(sizeof(In*)) / std::max<int64_t>(taps_, 1);
    capacity_ = std::clamp<int64_t>(most, rows, kMaxPoints) / rows * rows;
    const int64_t tiles = capacity_ / rows;
    // One piece of scratch memory, cut into the tables.
    char* room = scratch<char>(Scratch::points, capacity_ * (sizeof(Point) + sizeof(int64_t) + taps_ * sizeof(In*)) +
                                                    tiles * (taps_ + 1) * sizeof(int64_t) +
                                                    2 * taps_ * sizeof(int64_t) + gemm.depth * sizeof(In));
    const auto cut = [&](auto*& table, int64_t count) {
      table = reinterpret_cast<std::remove_reference_t<decltype(table)>>(room);
      room += count * sizeof(*table);
    };
    cut(points_, capacity_);
    cut(pixels_, capacity_);
    cut(pointers_, capacity_ * taps_);
    cut(offsets_, tiles * taps_);
    cut(tile_taps_, tiles);
    cut(tap_offsets_, taps_);
    cut(no_offsets_, taps_);
    cut(zeros_, gemm.depth);
    std::fill_n(zeros_, gemm.depth, In{});
    std::fill_n(no_offsets_, taps_, 0);
    for (int64_t t = 0; t < taps_; ++t) {
      tap_offsets_[t] = (lattice.taps[t].h * gemm.in_w + lattice.taps[t].w) * gemm.x_pixel_stride;
      if (shared_) offsets_[t] = lattice.taps[t].offset;
    }
  }

  int64_t capacity() const { return capacity_; }

  // Lays out points [begin, begin + count).
  void fill(int64_t begin, int64_t count) {
    count_ = count;
    if (shared_) return place_shared(begin);
    if (border_.kind == Border::classes) start_slots(begin);
    place(begin);
    for (int64_t first = 0, tile = 0; first < count; first += tile_rows_, ++tile) {
      const int rows = static_cast<int>(std::min<int64_t>(tile_rows_, count - first));
      const Point* points = points_ + first;
      const In** pointer = pointers_ + first * taps_;
      int64_t* offset = offsets_ + tile * taps_;
      uint64_t any = 0;
      for (int i = 0; i < rows; ++i) any |= points[i].inside;
      for (int64_t t = 0; t < taps_; ++t) {
        if (border_.kind == Border::classes && !(any >> t & 1)) continue;
        for (int i = 0; i < rows; ++i)
          pointer[i] = inside(points[i], t) ? gemm_.x + points[i].origin + tap_offsets_[t] : zeros_;
        pointer += rows;
        *offset++ = lattice_.taps[t].offset;
      }
      tile_taps_[tile] = offset - (offsets_ + tile * taps_);
    }
  }

  // Multiplies the block with one panel.
  void multiply(const typename Gemm<In, Out>::Packed* panel, int64_t column, int columns, int vectors) const {
    Tile<In, Out> tile{};
    tile.depth = gemm_.depth;
    tile.panel = panel;
    tile.y = gemm_.y + column;
    tile.y_pixel_stride = gemm_.y_pixel_stride;
    tile.column = column;
    tile.columns = columns;
    tile.x_offsets = shared_ ? tap_offsets_ : no_offsets_;
    for (int64_t first = 0, index = 0; first < count_; first += tile_rows_, ++index) {
      const int rows = static_cast<int>(std::min<int64_t>(tile_rows_, count_ - first));
      tile.taps = shared_ ? taps_ : tile_taps_[index];
      tile.rows = pointers_ + first * (shared_ ? 1 : taps_);
      tile.rows_per_tap = shared_ ? 0 : rows;
      tile.fetch_rows = fetch_ ? rows : 0;
      tile.tap_offsets = offsets_ + (shared_ ? 0 : index * taps_);
      tile.pixels = pixels_ + first;
      kTiles<In, Out>(rows, vectors)(tile, gemm_.epilogue);
    }
  }

 private:
  struct Point {
    int64_t origin;   // element of x that tap (0, 0) reads
    int64_t h, w;     // its input pixel
    uint64_t inside;  // its class's taps
  };

  bool inside(const Point& point, int64_t t) const {
    if (border_.kind == Border::classes) return point.inside >> t & 1;
    const int64_t h = point.h + lattice_.taps[t].h, w = point.w + lattice_.taps[t].w;
    return h >= 0 && h < gemm_.in_h && w >= 0 && w < gemm_.in_w;
  }

  // Where the points of each class begin in the block: points with the same taps stand side by side.
  void start_slots(int64_t begin) {
    const size_t col_count = border_.cols.taps.size();
    slots_.assign(border_.rows.taps.size() * col_count + 1, 0);
    int64_t i = begin / lattice_.cols % lattice_.rows, j = begin % lattice_.cols;
    for (int64_t k = 0; k < count_; ++k) {
      ++slots_[border_.cols.of[j] + border_.rows.of[i] * col_count + 1];
      if (++j == lattice_.cols) j = 0, i = i + 1 == lattice_.rows ? 0 : i + 1;
    }
    for (size_t s = 1; s < slots_.size(); ++s) slots_[s] += slots_[s - 1];
  }

  void place(int64_t begin) {
    const int64_t per_image = lattice_.rows * lattice_.cols;
    int64_t n = begin / per_image, i = begin % per_image / lattice_.cols, j = begin % lattice_.cols;
    for (int64_t k = 0; k < count_;) {
      const int64_t h = i * lattice_.in_step_h, y_row = lattice_.first_h + i * lattice_.step_h;
      const int64_t x_row = (n * gemm_.in_h + h) * gemm_.in_w;
      const int64_t y_first = (n * gemm_.out_h + y_row) * gemm_.out_w + lattice_.first_w;
      for (; j < lattice_.cols && k < count_; ++j, ++k) {
        int64_t at = k;
        uint64_t inside = 0;
        if (border_.kind == Border::classes) {
          const int row_class = border_.rows.of[i], col_class = border_.cols.of[j];
          at = slots_[col_class + row_class * border_.cols.taps.size()]++;
          inside = border_.rows.taps[row_class] & border_.cols.taps[col_class];
        }
        const int64_t w = j * lattice_.in_step_w;
        points_[at] = {(x_row + w) * gemm_.x_pixel_stride, h, w, inside};
        pixels_[at] = y_first + j * lattice_.step_w;
      }
      j = 0;
      if (++i == lattice_.rows) i = 0, ++n;
    }
  }

  // One pointer per point: no tap is in the padding.
  void place_shared(int64_t begin) {
    const int64_t per_image = lattice_.rows * lattice_.cols;
    const int64_t x_step = lattice_.in_step_w * gemm_.x_pixel_stride, y_step = lattice_.step_w;
    int64_t n = begin / per_image, i = begin % per_image / lattice_.cols, j = begin % lattice_.cols;
    for (int64_t k = 0; k < count_; j = 0) {
      const int64_t x_row = (n * gemm_.in_h + i * lattice_.in_step_h) * gemm_.in_w;
      const In* x = gemm_.x + x_row * gemm_.x_pixel_stride;
      const int64_t y = (n * gemm_.out_h + lattice_.first_h + i * lattice_.step_h) * gemm_.out_w + lattice_.first_w;
      const In** pointers = pointers_ + k;
      int64_t* pixels = pixels_ + k;
      const int64_t run = std::min(lattice_.cols - j, count_ - k);
      for (int64_t at = 0; at < run; ++at) {
        pointers[at] = x + (j + at) * x_step;
        pixels[at] = y + (j + at) * y_step;
      }
      k += run;
      if (++i == lattice_.rows) i = 0, ++n;
    }
  }

  const Gemm<In, Out>& gemm_;
  const Lattice& lattice_;
  const Border& border_;
  const int tile_rows_;
  const int64_t taps_;
  const bool shared_;  // all taps of a point go by one pointer
  const bool fetch_;   // y is too large for the cache
  int64_t capacity_ = 0, count_ = 0;
  Point* points_;
  int64_t* pixels_;       // of y, per point
  const In** pointers_;   // per tile: [taps][rows], or [rows] where they are shared
  int64_t* offsets_;      // per tile, or once: [taps], rows of the panel
  int64_t* tile_taps_;    // taps that are not all in the padding, per tile
  int64_t* tap_offsets_;  // elements of x from tap (0, 0)
  int64_t* no_offsets_;   // [taps], of pointers that are not shared
  In* zeros_;             // what a tap in the padding reads
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
  const GemmCut cut = choose_cut(lattices.size(), points, columns, steps / points, threads, kLane,
                                 x_pixel_stride * static_cast<int64_t>(sizeof(In)));
  const int64_t width = cut.tile.vectors * kLane;
  const int64_t panels = (columns + width - 1) / width;

  const auto panel_columns = [&](int64_t panel) { return static_cast<int>(std::min(width, columns - panel * width)); };
  const auto panel_vectors = [&](int64_t panel) { return (panel_columns(panel) + kLane - 1) / kLane; };
  const auto pack_panel = [&](int64_t panel, Packed* out) {
    (*pack)(panel* width, panel_columns(panel), out, panel_vectors(panel) * kLane);
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

  std::vector<Border> borders;
  for (const Lattice& lattice : lattices) borders.emplace_back(lattice, in_h, in_w);

  if (cut.split == Split::panels) {
    parallel_for(panels, 1, [&](int64_t first, int64_t last) {
      Packed* packed = scratch<Packed>(Scratch::packed, width * packed_depth);
      for (int64_t panel = first; panel < last; ++panel) {
        pack_panel(panel, packed);
        for (size_t i = 0; i < lattices.size(); ++i) {
          Block<In, Out> block(*this, lattices[i], borders[i], cut.tile.rows);
          multiply(block, 0, images * lattices[i].rows * lattices[i].cols, panel, panel + 1, packed);
        }
      }
    });
    return;
  }
  const auto pack_panels = [&](int64_t first, int64_t last, Packed* packed) {
    for (int64_t panel = first; panel < last; ++panel) pack_panel(panel, packed + panel * width * packed_depth);
  };
  Packed* shared = nullptr;
  if (cut.split == Split::points) {
    shared = scratch<Packed>(Scratch::packed, panels * width * packed_depth);
    parallel_for(panels, 1, [&](int64_t first, int64_t last) { pack_panels(first, last, shared); });
  }
  for (size_t i = 0; i < lattices.size(); ++i) {
    const int64_t count = images * lattices[i].rows * lattices[i].cols;
    const int64_t tiles = (count + cut.tile.rows - 1) / cut.tile.rows;
    parallel_for(tiles, 1, [&](int64_t first, int64_t last) {
      Packed* packed = shared;
      if (cut.split == Split::points_packing) {
        packed = scratch<Packed>(Scratch::packed, panels * width * packed_depth);
        pack_panels(0, panels, packed);
      }
      Block<In, Out> block(*this, lattices[i], borders[i], cut.tile.rows);
      multiply(block, first * cut.tile.rows, std::min(count, last * cut.tile.rows), 0, panels, packed);
    });
  }
}

template <class In, class Out> TileFunction<In, Out> register_tile(int rows, int vectors) {
  return kTiles<In, Out>(rows, vectors);
}

#define CNNKERN_INSTANTIATE(In, Out) \
  template struct Gemm<In, Out>;     \
  template TileFunction<In, Out> register_tile<In, Out>(int rows, int vectors);
#if defined(__AVX512BF16__)
CNNKERN_INSTANTIATE(bf16, bf16)
#else
CNNKERN_INSTANTIATE(float, float)
CNNKERN_INSTANTIATE(double, double)
CNNKERN_INSTANTIATE(float, bf16)
CNNKERN_INSTANTIATE(float, f16)
#endif

}  // namespace cnnkern::cpu::CNNKERN_ISA
