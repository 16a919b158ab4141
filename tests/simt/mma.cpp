#include "mma.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <bit>
#include <cstring>

namespace simt {
namespace {

// --- ldmatrix --------------------------------------------------------------------------------------------------------

struct MatrixLoad {
  uint32_t* to;
  const Thread* thread;
  Block* block;
  int64_t row;
  bool transposed;
  const Site* at;
};

void perform_load(void* const* deposits) {
  uint16_t matrices[4][8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& load = *static_cast<const MatrixLoad*>(deposits[lane]);
    std::memcpy(matrices[lane / 8][lane % 8], load.block->memory->read(*load.thread, load.row, 16, 16, *load.at), 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& load = *static_cast<const MatrixLoad*>(deposits[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const auto& matrix = matrices[m];
      const uint32_t low = load.transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint32_t high = load.transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      load.to[m] = low | high << 16;
    }
  }
}

// --- mma -------------------------------------------------------------------------------------------------------------

struct Fragments {
  float* d;
  const uint32_t *a, *b;
};

// Elements of one register.
template <Format kFormat> constexpr int kPerRegister = kFormat == Format::tf32 ? 1 : 2;

template <Format kFormat> void unpack(uint32_t bits, float* to) {
  if constexpr (kFormat == Format::tf32) {
    to[0] = std::bit_cast<float>(bits & ~0x1fffu);
  } else {
    to[0] = element(&bits, kFormat);
    to[1] = element(reinterpret_cast<const char*>(&bits) + 2, kFormat);
  }
}

template <Format kFormat> void perform_mma(void* const* deposits) {
  constexpr int kPer = kPerRegister<kFormat>, kHalf = 4 * kPer, kK = 2 * kHalf;
  float a[16][kK], b[8][kK], b_by_row[kK][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& from = *static_cast<const Fragments*>(deposits[lane]);
    const int g = lane / 4, k = lane % 4 * kPer;
    for (int i = 0; i < 4; ++i) unpack<kFormat>(from.a[i], &a[g + i % 2 * 8][k + i / 2 * kHalf]);
    for (int i = 0; i < 2; ++i) unpack<kFormat>(from.b[i], &b[g][k + i * kHalf]);
  }
  for (int k = 0; k < kK; ++k) {
    for (int n = 0; n < 8; ++n) b_by_row[k][n] = b[n][k];
  }
  for (int m = 0; m < 16; ++m) {
    float sums[8] = {};
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < 8; ++n) sums[n] += a[m][k] * b_by_row[k][n];
    }
    for (int n = 0; n < 8; ++n) {
      static_cast<const Fragments*>(deposits[m % 8 * 4 + n / 2])->d[m / 8 * 2 + n % 2] += sums[n];
    }
  }
}

}  // namespace

float element(const void* from, Format format) {
  uint32_t word = 0;
  uint16_t half = 0;
  switch (format) {
    case Format::tf32: std::memcpy(&word, from, 4); return std::bit_cast<float>(word & ~0x1fffu);
    case Format::bf16: std::memcpy(&half, from, 2); return std::bit_cast<float>(uint32_t{half} << 16);
    case Format::f16: break;
  }
  __half v;
  std::memcpy(static_cast<void*>(&v), from, 2);
  return __half2float(v);
}

void load_matrices(uint32_t (&to)[4], Block& block, int64_t row, bool transposed, const Site& at) {
  static constexpr Meeting::Operation kOperation{"ldmatrix", perform_load, false, /*needs_all=*/true};
  MatrixLoad mine{to, &self(), &block, row, transposed, &at};
  meet_warp(0xffffffff, &mine, kOperation, at);
}

void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Format format, const Site& at) {
  static constexpr Meeting::Operation kOperations[] = {{"mma", perform_mma<Format::bf16>, false, true},
                                                       {"mma", perform_mma<Format::f16>, false, true},
                                                       {"mma", perform_mma<Format::tf32>, false, true}};
  Fragments mine{d, a, b};
  meet_warp(0xffffffff, &mine, kOperations[static_cast<int>(format)], at);
}

}  // namespace simt
