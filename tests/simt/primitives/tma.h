// The host twin of csrc/cuda/primitives/tma.h: a tensor map is the view itself, after the checks that the driver makes.
#pragma once

#include <primitives/launcher.h>
#include <primitives/mbarrier.h>
#include <primitives/tensor_map.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace cnnkern::cuda {

using TensorMap = TensorView;

inline TensorMap tensor_map(const TensorView& view, const Call& call) {
  const int64_t element = kDTypeSizes[static_cast<int>(view.dtype)];
  const auto need = [&](bool holds, const char* what) {
    if (!holds) fail(call, std::string("the driver refuses (") + what + ") a tensor map of " + to_string(view));
  };
  const bool walked = view.pixels.walked;
  need(reinterpret_cast<uintptr_t>(view.address) % 16 == 0, "its address is no multiple of 16");
  need(walked ? view.rank == 4 : view.rank >= 1 && view.rank <= 4, "its rank");
  for (int i = 0; i < view.rank; ++i) {
    need(view.size[i] >= 1 && view.size[i] <= int64_t{1} << 32, "a size");
    const int64_t bytes = view.stride[i] * element;
    if (i > 0) need(bytes % 16 == 0 && bytes > 0 && bytes < int64_t{1} << 40, "a stride");
    if (!walked) need(view.box[i] >= 1 && view.box[i] <= 256, "a box");
  }
  need(view.box[0] * element == simt::kRowBytes, "a box that is no 128 bytes wide");  // narrower ones are not emulated
  if (!walked) return view;
  need(view.box[1] >= 1 && view.box[1] <= 256, "pixels of a column");
  for (const int i : {0, 1}) {
    const int lower = view.pixels.lower[i], upper = view.pixels.upper[i];
    need(lower >= -128 && lower <= 127 && upper >= -128 && upper <= 127, "a corner");
    need(view.size[1 + i] + upper - lower > 0, "a box without pixels");
    need(view.pixels.step[i] >= 1 && view.pixels.step[i] <= 8, "a step");
  }
  return view;
}

inline void prefetch_map(const TensorMap&) {}

// 128 bytes of a tensor from `at` on: zeros where that is outside. TF32 is rounded to, to the nearest.
inline simt::Row row_at(const TensorView& tensor, const int64_t (&at)[4]) {
  const auto element = static_cast<int64_t>(kDTypeSizes[static_cast<int>(tensor.dtype)]);
  simt::Row row{};
  int64_t first = 0;
  for (int i = 1; i < tensor.rank; ++i) {
    if (at[i] < 0 || at[i] >= tensor.size[i]) return row;
    first += at[i] * tensor.stride[i];
  }
  const int64_t count = std::min<int64_t>(simt::kRowBytes / element, tensor.size[0] - at[0]);
  if (count <= 0) return row;
  std::memcpy(row.data(), static_cast<const std::byte*>(tensor.address) + (first + at[0]) * element, count * element);
  if (tensor.as_tf32) {
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits;
      std::memcpy(&bits, row.data() + i * 4, 4);
      if ((bits & 0x7f800000) != 0x7f800000) bits = (bits + 0x1000) & ~0x1fffu;
      std::memcpy(row.data() + i * 4, &bits, 4);
    }
  }
  return row;
}

template <class T>
void load_box(Shared<T> to, const TensorMap& map, const Barrier& counted, int at0, int at1, int at2, int blocks,
              simt::Site at = simt::Site::current()) {
  const TensorView view = map;
  const auto row_of = [=](int i) { return row_at(view, {at0, at1 + i % view.box[1], at2 + i / view.box[1], 0}); };
  simt::load_rows({&to.block(), to.offset()}, counted.place(), static_cast<unsigned>(blocks), view.box[1] * view.box[2],
                  row_of, at);
}
template <class T>
void load_box(Shared<T> to, const TensorMap& map, const Barrier& counted, int at0, int at1, int at2,
              simt::Site at = simt::Site::current()) {
  load_box(to, map, counted, at0, at1, at2, 1 << to.block().rank, at);
}

template <class T>
void load_pixels(Shared<T> to, const TensorMap& tensor, const Barrier& counted, int map, int column, int row, int image,
                 int offset_column, int offset_row, int blocks, simt::Site at = simt::Site::current()) {
  const TensorView view = tensor;
  const auto& walk = view.pixels;
  if (offset_column < 0 || offset_column > 255 || offset_row < 0 || offset_row > 255)
    simt::fail(simt::Fault::misuse, "a tap's offset is not within 8 bits", at);
  for (const int i : {0, 1}) {  // PTX ISA, "im2col mode": the filter's corner must be within the bounding box
    const int64_t corner = i ? row : column;
    if (corner < walk.lower[i] || corner > view.size[1 + i] - 1 + walk.upper[i])
      simt::fail(simt::Fault::misuse, "pixels are walked over from outside of their box", at);
  }
  std::vector<std::array<int64_t, 3>> pixels;  // column, row, image of each
  int64_t x = column, y = row, n = image;
  for (int i = 0; i < view.box[1]; ++i) {
    pixels.push_back({x, y, n});
    if ((x += walk.step[0]) <= view.size[1] - 1 + walk.upper[0]) continue;
    x = walk.lower[0];
    if ((y += walk.step[1]) <= view.size[2] - 1 + walk.upper[1]) continue;
    y = walk.lower[1];
    ++n;
  }
  const auto row_of = [=](int i) {
    const auto& [px, py, pn] = pixels[i];
    return row_at(view, {map, px + offset_column, py + offset_row, pn});
  };
  simt::load_rows({&to.block(), to.offset()}, counted.place(), static_cast<unsigned>(blocks), view.box[1], row_of, at);
}
template <class T>
void load_pixels(Shared<T> to, const TensorMap& tensor, const Barrier& counted, int map, int column, int row, int image,
                 int offset_column, int offset_row, simt::Site at = simt::Site::current()) {
  load_pixels(to, tensor, counted, map, column, row, image, offset_column, offset_row, 1 << to.block().rank, at);
}

template <class T>
void store_box(const TensorMap& map, Shared<T> from, int at0, int at1, int at2, simt::Site at = simt::Site::current()) {
  const TensorView view = map;
  const auto to_row = [=](int i, const simt::Row& row) {
    const auto element = static_cast<int64_t>(kDTypeSizes[static_cast<int>(view.dtype)]);
    const int64_t place[] = {at0, at1 + i % view.box[1], at2 + i / view.box[1]};
    for (const int d : {1, 2}) {
      if (place[d] < 0 || place[d] >= view.size[d]) return;
    }
    const int64_t count = std::min<int64_t>(simt::kRowBytes / element, view.size[0] - at0);
    const int64_t first = at0 + place[1] * view.stride[1] + place[2] * view.stride[2];
    if (count > 0)
      std::memcpy(static_cast<std::byte*>(const_cast<void*>(view.address)) + first * element, row.data(),
                  count * element);
  };
  simt::store_rows({&from.block(), from.offset()}, view.box[1] * view.box[2], to_row, at);
}
inline void commit_stores() { simt::commit_stores(); }
template <int kPending> void wait_stores(simt::Site at = simt::Site::current()) { simt::wait_stores(kPending, at); }
inline void fence_copy_engine() { simt::fence_async(); }

}  // namespace cnnkern::cuda
