// The one pool: torch's own, so that torch.set_num_threads rules here too and no second runtime competes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cnnkern::cpu {

// The number of threads that parallel_for can use from here: 1 inside a parallel region.
int64_t thread_count();

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
void parallel_for_impl(int64_t count, int64_t grain, RangeBody body, void* context);

// Splits [0, count) into contiguous ranges of at least `grain` and runs body(begin, end) on each; returns when all
// have. An exception in a body comes out here.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_for_impl(
      count, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<Body*>(&body));
}

// While one lives, parallel_for runs on the calling thread alone: for work that ends before another thread has begun.
class OnThisThread {
 public:
  OnThisThread();
  ~OnThisThread();
  OnThisThread(const OnThisThread&) = delete;
  OnThisThread& operator=(const OnThisThread&) = delete;

 private:
  const bool before_;
};

// Scratch memory of the calling thread, 64-byte aligned, contents undefined. Slot i keeps its memory from call to
// call and grows as asked; a pointer is good until the next request for the same slot on the same thread.
// x to channels belong to the ops, which stage operands there; the rest to the kernels.
enum class Scratch { x, w, y, residual, channels, packed, packed_dy, pairs, points, sums, columns, local, count };
void* scratch_bytes(Scratch slot, size_t bytes);

template <class T>
T* scratch(Scratch slot, int64_t elements) {
  return static_cast<T*>(scratch_bytes(slot, static_cast<size_t>(elements) * sizeof(T)));
}

}  // namespace cnnkern::cpu
