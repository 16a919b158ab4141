// Memory that has not been written yet, made to show: with CNNKERN_POISON in the environment, as the tests have it,
// fresh results and scratch memory are NaN in every dtype, so that a kernel which reads or leaves them is found out.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace cnnkern {

inline void poison(void* memory, size_t bytes) {
  static const bool asked = std::getenv("CNNKERN_POISON") != nullptr;
  if (asked && bytes) std::memset(memory, 0xff, bytes);
}

}  // namespace cnnkern
