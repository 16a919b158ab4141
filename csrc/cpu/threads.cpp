#include "threads.h"

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>

#include "../poison.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cnnkern::cpu {
namespace {

// torch_get_num_threads answers with the size of the pool inside a parallel region too, where a nested region would
// get one thread; so the regions opened here are marked on each thread that works in them.
thread_local bool inside_region = false;

// `count` items cut into `ranges` ranges whose lengths differ by one at most.
struct Region {
  int64_t count, ranges;
  RangeBody body;
  void* context;
  std::mutex mutex;
  std::exception_ptr error;

  int64_t start_of(int64_t range) const { return range * (count / ranges) + std::min(range, count % ranges); }
};

// Called by torch with several of the ranges when the pool gives fewer threads than there are ranges.
void run_ranges(int64_t begin, int64_t end, void* opaque) {
  Region& region = *static_cast<Region*>(opaque);
  const OnThisThread mark;
  try {
    region.body(region.start_of(begin), region.start_of(end), region.context);
  } catch (...) {
    const std::lock_guard lock(region.mutex);
    if (!region.error) region.error = std::current_exception();
  }
}

constexpr size_t kCacheLine = 64, kHugePage = size_t{2} << 20;

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};

struct Buffer {
  std::unique_ptr<void, Free> memory;
  size_t bytes = 0;

  void grow(size_t wanted) {
    const size_t unit = wanted >= kHugePage ? kHugePage : kCacheLine;
    const size_t rounded = (wanted + unit - 1) / unit * unit;
    memory.reset();  // the old contents are not kept, so neither is their memory meanwhile
    bytes = 0;
    memory.reset(std::aligned_alloc(unit, rounded));
    if (!memory) throw std::bad_alloc();
    bytes = rounded;
#if defined(__linux__)
    if (unit == kHugePage) madvise(memory.get(), rounded, MADV_HUGEPAGE);  // a hint: its failure changes nothing
#endif
  }
};

}  // namespace

OnThisThread::OnThisThread() : before_(inside_region) { inside_region = true; }

OnThisThread::~OnThisThread() { inside_region = before_; }

int64_t thread_count() {
  if (inside_region) return 1;
  uint32_t count = 1;
  if (torch_get_num_threads(&count)) throw std::runtime_error("torch does not tell its number of threads");
  return count;
}

void parallel_for_impl(int64_t count, int64_t grain, RangeBody body, void* context) {
  if (count <= 0) return;
  const int64_t most = count / std::max<int64_t>(grain, 1);
  const int64_t ranges = most <= 1 ? 1 : std::min(most, thread_count());
  if (ranges == 1) return body(0, count, context);
  Region region{count, ranges, body, context, {}, {}};
  if (torch_parallel_for(0, ranges, 1, run_ranges, &region)) throw std::runtime_error("torch's thread pool failed");
  if (region.error) std::rethrow_exception(region.error);
}

void* scratch_bytes(Scratch slot, size_t bytes) {
  static thread_local Buffer buffers[static_cast<int>(Scratch::count)];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.bytes < bytes) buffer.grow(bytes);
  poison(buffer.memory.get(), bytes);
  return buffer.memory.get();
}

}  // namespace cnnkern::cpu
