// Copies between memory formats, of every element size and of strides that torch's views have.
#include <array>
#include <cstdint>
#include <numeric>

#include "check.h"
#include "cpu/layout.h"

using namespace cnnkern::cpu;

namespace {

using Four = std::array<int64_t, 4>;  // n, c, h, w

constexpr Four kSizes[] = {{1, 1, 1, 1},    {2, 3, 5, 7},  {1, 64, 8, 8}, {3, 17, 13, 19},
                           {1, 130, 1, 67}, {2, 1, 9, 33}, {0, 3, 4, 4}};

int64_t elements(const Four& sizes) { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }

template <class Body> void for_each_element(const Four& sizes, const Body& body) {
  for (int64_t n = 0; n < sizes[0]; ++n)
    for (int64_t c = 0; c < sizes[1]; ++c)
      for (int64_t h = 0; h < sizes[2]; ++h)
        for (int64_t w = 0; w < sizes[3]; ++w) body(Four{n, c, h, w});
}

int64_t offset(const Four& at, const Four& strides) {
  return std::inner_product(at.begin(), at.end(), strides.begin(), int64_t{0});
}

Four dense(const Four& sizes, bool channels_last) {
  Four strides;
  dense_strides(sizes.data(), channels_last, strides.data());
  return strides;
}

// Strides of a tensor that is: NCHW, NHWC, either with gaps, with height and width exchanged, expanded over the batch.
std::vector<Four> strides_of(const Four& sizes) {
  const auto [n, c, h, w] = sizes;
  const int64_t pixel = c + 3, row = w + 2;
  return {dense(sizes, false),
          dense(sizes, true),
          {c * h * row, h * row, row, 1},
          {h * w * pixel, 1, w * pixel, pixel},
          {c * h * w, h * w, 1, h},
          {0, h * w, w, 1},
          {2 * c * h * w, 2 * h * w, 2 * w, 2}};
}

// Memory with another value in each element.
template <class T> std::vector<T> counted(int64_t count) {
  std::vector<T> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<T>(i * 40'503 + 1);
  return values;
}

template <class T> void check_copies(const Four& sizes) {
  const Four nhwc = dense(sizes, true), nchw = dense(sizes, false);
  constexpr T kGuard = static_cast<T>(0x5a5a);
  for (const Four& strides : strides_of(sizes)) {
    int64_t last = 0;
    for_each_element(sizes, [&](const Four& at) { last = std::max(last, offset(at, strides)); });
    const std::vector<T> source = counted<T>(last + 1);
    std::vector<T> target(elements(sizes) + 1, kGuard);
    copy_to_nhwc(source.data(), sizes.data(), strides.data(), sizeof(T), target.data());
    int64_t wrong = 0;
    for_each_element(sizes, [&](const Four& at) { wrong += target[offset(at, nhwc)] != source[offset(at, strides)]; });
    CHECK_EQUAL(wrong, 0);
    CHECK(target.back() == kGuard);
  }
  const std::vector<T> source = counted<T>(elements(sizes));
  std::vector<T> target(elements(sizes) + 1, kGuard);
  copy_to_nchw(source.data(), sizes.data(), sizeof(T), target.data());
  int64_t wrong = 0;
  for_each_element(sizes, [&](const Four& at) { wrong += target[offset(at, nchw)] != source[offset(at, nhwc)]; });
  CHECK_EQUAL(wrong, 0);
  CHECK(target.back() == kGuard);
}

}  // namespace

TEST(copies_move_every_element_to_its_place) {
  for (const Four& sizes : kSizes) {
    check_copies<uint16_t>(sizes);  // bf16, f16
    check_copies<uint32_t>(sizes);  // f32
    check_copies<uint64_t>(sizes);  // f64
  }
}

TEST(nhwc_is_recognised_with_its_pixel_stride) {
  const Four sizes{2, 6, 5, 4};
  const std::vector<Four> strides = strides_of(sizes);
  const int64_t expected[] = {0, 6, 0, 9, 0, 0, 0};
  for (size_t i = 0; i < strides.size(); ++i) {
    CHECK_EQUAL(nhwc_pixel_stride(sizes.data(), strides[i].data()), expected[i]);
    CHECK_EQUAL(contiguous(sizes.data(), strides[i].data()), i == 0);
    CHECK_EQUAL(suggests_channels_last(sizes.data(), strides[i].data()), i == 1 || i == 3);
  }
}
