// Panels of weights, of the instruction set that every processor has; the kernels' tests reach the others.
#include "check.h"
#include "cpu/packing.h"

using namespace cnnkern::cpu::generic;

namespace {

// The element of w that a panel has at [d][j], or zero beyond the last column.
template <class T> void check_panels() {
  using A = acc_t<T>;
  for (const int columns : {1, 3, 4, 7, 8, 13}) {
    for (const int64_t depth : {1, 2, 5, 16, 33}) {
      const int width = (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
      const int64_t row = depth + columns + 2;  // longer than both, for rows of either kind
      const int64_t rows = std::max<int64_t>(columns, depth);
      std::vector<T> w(rows * row);
      for (size_t i = 0; i < w.size(); ++i) w[i] = from_acc<T>(static_cast<A>(i % 251 + 1));
      std::vector<A> panel(depth * width + 1, A(-1));
      const auto count_wrong = [&](int64_t d_stride, int64_t j_stride) {
        int64_t wrong = panel.back() != A(-1);
        for (int64_t d = 0; d < depth; ++d)
          for (int64_t j = 0; j < width; ++j)
            wrong += panel[d * width + j] != (j < columns ? to_acc(w[d * d_stride + j * j_stride]) : A(0));
        return wrong;
      };
      pack_transposed(w.data(), row, columns, depth, panel.data(), width);
      CHECK_EQUAL(count_wrong(1, row), 0);
      pack_rows(w.data(), row, columns, depth, panel.data(), width);
      CHECK_EQUAL(count_wrong(row, 1), 0);
    }
  }
}

}  // namespace

TEST(panels_hold_every_weight_and_zeros_beyond) {
  check_panels<float>();
  check_panels<double>();
  check_panels<bf16>();
  check_panels<f16>();
}
