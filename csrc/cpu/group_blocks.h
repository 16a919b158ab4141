// fprop and dgrad of 3x3 convolutions with groups of as many input as output maps: who packs, copies and computes what.
//
// Nothing is shared but x and y: a thread packs the weights of the groups that it computes, a block at a time that
// stays in its L2, so there is one parallel region and no core waits for what another one packed. Threads divide the
// maps where the weights are many, which then are packed once in all, and the rows of output where threads are left.
// With weights packed by all for all, 16 images of 1024 maps at 14x14 to 7x7 took 3.7 ms on two Zen 4 cores; so 3.0 ms.
#pragma once

#include <algorithm>
#include <utility>

#include "group_sweep.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int kFilter = 3;  // of the square kernels
constexpr int kTaps = kFilter * kFilter;

template <class T> int64_t vectors_of(int64_t maps) { return (maps + kLanes<T> - 1) / kLanes<T>; }

// w[k][tap][d] -> [vector of k][tap][d][lanes]
template <class T>
void pack_fprop(const T* w, int64_t maps, int64_t group, int64_t vector, acc_t<T>* packed) {
  const T* source = w + vector_start<acc_t<T>>(vector, maps) * kTaps * group;
  for (int64_t t = 0; t < kTaps; ++t)
    pack_transposed(source + t * group, kTaps * group, kLanes<T>, group, packed + t * group * kLanes<T>, kLanes<T>);
}

// w[k][tap][c % G] -> [vector of c][tap][k % G][lanes]
template <class T>
void pack_dgrad(const T* w, int64_t maps, int64_t group, int64_t vector, acc_t<T>* packed) {
  constexpr int kLane = kLanes<T>;
  const int64_t run = std::min<int64_t>(group, kLane), start = vector_start<acc_t<T>>(vector, maps);
  for (int64_t l = 0; l < kLane; l += run) {  // lanes whose maps lie in one group
    const int64_t first = (start + l) / group * group, in_group = (start + l) % group;
    for (int64_t t = 0; t < kTaps; ++t) {
      for (int64_t d = 0; d < group; ++d) {
        const T* source = w + ((first + d) * kTaps + t) * group + in_group;
        store_n(packed + (t * group + d) * kLane + l, load_n(source, static_cast<int>(run)), static_cast<int>(run));
      }
    }
  }
}

// Vectors [begin, end) of maps, and the maps of their groups.
template <class T> struct Block {
  int64_t begin, end, map_begin, map_end;

  Block(int64_t begin, int64_t end, int64_t maps, int64_t group) : begin(begin), end(end) {
    const int64_t last = vector_start<acc_t<T>>(end - 1, maps) + kLanes<T>;
    map_begin = vector_start<acc_t<T>>(begin, maps) / group * group;
    map_end = (last + group - 1) / group * group;
  }
};

// Of packed weights, or sums of them: so many are taken at once, else blocks of about kBlockWeightBytes. dgrad of 16
// images of 512 maps of 28x28 at stride 2 (288 KiB) took 3.1 ms on two Zen 4 cores in blocks, and takes 2.6 ms.
constexpr int64_t kWholeWeightBytes = 384 * 1024, kBlockWeightBytes = 128 * 1024;

template <class T> int64_t weight_bytes(int64_t vectors, int64_t group) {
  return vectors * kTaps * group * kLanes<T> * static_cast<int64_t>(sizeof(acc_t<T>));
}

template <class T> int64_t vectors_of_group(int64_t group) { return std::max<int64_t>(group / kLanes<T>, 1); }

// Calls body(block) for blocks of vectors [begin, end): as few and as even as stay in L2, for a narrow one reads little
// of each pixel.
template <class T, class Body>
void for_each_block(int64_t begin, int64_t end, int64_t maps, int64_t group, const Body& body) {
  const int64_t unit = vectors_of_group<T>(group), units = (end - begin + unit - 1) / unit;
  const int64_t bytes = weight_bytes<T>(end - begin, group);
  const int64_t blocks = bytes > kWholeWeightBytes ? std::clamp<int64_t>(bytes / kBlockWeightBytes, 1, units) : 1;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t last = std::min(begin + (i + 1) * units / blocks * unit, end);
    body(Block<T>(begin + i * units / blocks * unit, last, maps, group));
  }
}

// Bands [band_begin, band_end) of all images' rows, for one block of vectors.
template <int U, bool kTransposed, Values kValues, class T>
void run_block(const Sweep<T, T>& sweep, const T* w, const Block<T>& block, int64_t band_begin, int64_t band_end) {
  constexpr auto pack = kTransposed ? pack_dgrad<T> : pack_fprop<T>;
  const int64_t elements = sweep_vector_elements<kFilter>(sweep), bands = bands_of(sweep);
  acc_t<T>* packed = scratch<acc_t<T>>(Scratch::packed, (block.end - block.begin) * elements);
  for (int64_t v = block.begin; v < block.end; ++v)
    pack(w, sweep.maps, sweep.group, v, packed + (v - block.begin) * elements);
  Sweep<T, T> own = sweep;
  own.w = packed - block.begin * elements;
  const Pixels<T> in{sweep.in, sweep.in_stride};
  const bool copies = in.evict_each_other();
  const int64_t bytes = copies ? 0 : sweep_bytes(sweep);
  for (int64_t band = band_begin; band < band_end;) {
    const int64_t image = band / bands, last = std::min((image + 1) * bands, band_end);
    if (copies) {
      const int64_t row_end = std::min((last - image * bands) * kTileRows, sweep.rows.out);
      const auto [line, line_end] = lines_of(sweep.rows, band % bands * kTileRows, row_end);
      const int64_t first = image * sweep.rows.in, columns = sweep.columns.in;
      const Pixels<T> copy = copy_maps(in, (first + line) * columns, (first + line_end) * columns, block.map_begin,
                                       block.map_end, Scratch::columns);
      own.in = copy.data;
      own.in_stride = copy.stride;
    }
    for (; band < last; ++band)
      run_band<kFilter, U, kTransposed, kValues>(own, image, band % bands * kTileRows, block.begin, block.end,
                                                 bytes > kFarInBytes, bytes > kFarOutBytes);
  }
}

template <int U, bool kTransposed, Values kValues, class T>
void run_blocks(const Sweep<T, T>& sweep, const T* w) {
  const int64_t vectors = vectors_of<T>(sweep.maps), bands = sweep.n * bands_of(sweep);
  const int64_t unit = vectors_of_group<T>(sweep.group), units = (vectors + unit - 1) / unit;
  const int64_t work = bands * kTileRows * sweep.columns.out * vectors * sweep_vector_elements<kFilter>(sweep) /
                       (kTransposed ? U * U : 1);
  const int64_t threads = std::clamp<int64_t>(work / kThreadWork, 1, thread_count());
  const bool many = weight_bytes<T>(vectors, sweep.group) > kWholeWeightBytes;
  const int64_t parts = many ? std::min(units, threads) : 1;  // of the maps
  const int64_t chunks = std::min(threads / parts, bands);    // of the bands
  parallel_for(parts * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / chunks, chunk = task % chunks;
      const int64_t first = part * units / parts * unit, last = std::min((part + 1) * units / parts * unit, vectors);
      for_each_block<T>(first, last, sweep.maps, sweep.group, [&](const Block<T>& block) {
        run_block<U, kTransposed, kValues>(sweep, w, block, chunk * bands / chunks, (chunk + 1) * bands / chunks);
      });
    }
  });
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
