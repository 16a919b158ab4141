#include "tool_functions.h"

namespace cnnkern::cpu::CNNKERN_ISA {

const Tools& tools() {
  static const Tools table{prologue,
                           channel_shuffle,
                           max_pool2d,
                           max_pool2d_backward,
                           avg_pool2d,
                           avg_pool2d_backward,
                           global_avg_pool2d,
                           separable_why_not,
                           separable_rather_not,
                           separable};
  return table;
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
