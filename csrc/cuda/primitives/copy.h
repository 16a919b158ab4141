// Asynchronous copies from global to shared memory past the registers (PTX ISA, cp.async; sm_80 on).
// What a thread has copied is there for that thread after wait_copies, and for the others after a barrier besides.
#pragma once

#include <primitives/shared.h>

namespace cnnkern::cuda {

// kBytes (4, 8 or 16) from `from`, which is aligned to them; zeros, with nothing read, where it is not `valid`.
template <int kBytes, class T> __device__ void copy_async(Shared<T> to, const T* from, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const int read = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {  // past L1: each block reads a line once
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address()), "l"(from), "r"(read) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to.address()), "l"(from), "n"(kBytes), "r"(read)
                 : "memory");
  }
}

// Ends a group of this thread's copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups, the latest, are still under way.
template <int kPending> __device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace cnnkern::cuda
