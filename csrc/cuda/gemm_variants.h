// What the implicit GEMMs of the three directions share: their tiles, and what they refuse.
#pragma once

#include <array>

#include "gemm.h"
#include "gemm_pick.h"
#include "naming.h"

namespace cnnkern::cuda {

// The instances of a family of products in T: every one is a kernel of its own. The last takes any size and alignment.
template <class T> inline constexpr std::array kGemmVariants{
    GemmVariant{{128, 128, 32, 2, 2, 4, 2}, Math::tensor_cores, Loads::vectors},
    GemmVariant{{128, 64, 32, 2, 2, 4, 3}, Math::tensor_cores, Loads::vectors},
    GemmVariant{{64, 64, 64, 2, 2, 3, 4}, Math::tensor_cores, Loads::vectors},
    GemmVariant{{64, 64, 32, 2, 2, 2, 3}, Math::tensor_cores, Loads::elements},
};
template <> inline constexpr std::array kGemmVariants<float>{
    GemmVariant{{128, 128, 16, 2, 2, 4, 2}, Math::tensor_cores, Loads::vectors},
    GemmVariant{{64, 64, 32, 2, 2, 3, 3}, Math::tensor_cores, Loads::vectors},
    GemmVariant{{128, 64, 16, 2, 2, 4, 2}, Math::cuda_cores, Loads::vectors},
    GemmVariant{{64, 64, 16, 2, 2, 4, 4}, Math::cuda_cores, Loads::vectors},
    GemmVariant{{64, 64, 16, 2, 2, 2, 3}, Math::cuda_cores, Loads::elements},
};

// Calls use<i>() for each variant. Kernels are templates over the number of a variant, since nvcc cannot name a record.
template <class T, class Use> void for_each_variant(Use use) {
  [&]<size_t... i>(std::index_sequence<i...>) {
    (use.template operator()<static_cast<int>(i)>(), ...);
  }(std::make_index_sequence<kGemmVariants<T>.size()>());
}

// The tile in a kernel's name.
inline std::string tile_text(const GemmVariant& variant) {
  return variant.loads == Loads::elements ? "any" : variant.tile.to_string();
}

// A prologue belongs to x, which dgrad does not read.
inline bool has_prologue(const ConvProblem& p) {
  return p.direction != Direction::dgrad && !(p.prologue == Prologue{});
}

// Why coordinates cannot be computed in 32 bits with room to spare; empty if they can.
inline std::string beyond_32_bits(const ConvProblem& p) {
  const int64_t most = (int64_t{1} << 30);
  const int64_t filter_h = p.dilation_h * p.r, filter_w = p.dilation_w * p.s;
  for (const int64_t size : {p.n * p.h * p.w, p.n * p.p() * p.q(), p.x_stride(), p.y_stride(), p.r * p.s * p.c, p.k,
                             p.h + p.pad_top + p.pad_bottom + p.stride_h + filter_h,
                             p.w + p.pad_left + p.pad_right + p.stride_w + filter_w}) {
    if (size >= most) return "a size does not fit 30 bits";
  }
  return "";
}

// Why a variant cannot compute a problem, whatever the direction.
template <class T> std::string why_not_gemm(const GemmVariant& variant, const ConvProblem& p, const Flags& flags) {
  if (kDTypeOf<T> == DType::f32 && variant.math == Math::tensor_cores && !flags.tf32) return "TF32 is not allowed";
  if (variant.loads == Loads::vectors) {
    if (const std::string reason = not_in_vectors(p, kWidest<T>, flags); !reason.empty()) return reason;
    if (p.k_per_group() % kWidest<T>) return "maps of a group are no multiple of " + std::to_string(kWidest<T>);
    if (has_prologue(p)) return "it has no prologue";
  }
  return beyond_32_bits(p);
}

// The variant of some math and loads whose tile is expected to be the fastest. time(tile): expected_time, times what
// else differs from tile to tile.
template <class T, class Time> int best_variant(Math math, Loads loads, Time time) {
  int best = -1;
  for (int i = 0; i < static_cast<int>(kGemmVariants<T>.size()); ++i) {
    const GemmVariant& variant = kGemmVariants<T>[i];
    if (variant.math != math || variant.loads != loads) continue;
    if (best < 0 || time(variant.tile) < time(kGemmVariants<T>[best].tile)) best = i;
  }
  return best;
}

// Empty if variant `index` is the best of those that load and multiply alike, else a clause that names the best.
template <class T, class Time> std::string rather_not_variant(int index, Time time) {
  const GemmVariant& variant = kGemmVariants<T>[index];
  const int best = best_variant<T>(variant.math, variant.loads, time);
  return best == index ? "" : "tiles of " + kGemmVariants<T>[best].tile.to_string() + " are expected to be faster";
}

}  // namespace cnnkern::cuda
