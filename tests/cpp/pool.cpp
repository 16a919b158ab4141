// torch's two functions of its thread pool, on threads of the standard library: the thread sanitizer knows those.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <thread>
#include <vector>

constexpr uint32_t kThreads = 4;

AOTITorchError torch_get_num_threads(uint32_t* out_num_threads) {
  *out_num_threads = kThreads;
  return 0;
}

AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain_size, ParallelFunc func, void* ctx) {
  const int64_t share = std::max<int64_t>(grain_size, (end - begin + kThreads - 1) / kThreads);
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += share)
    threads.emplace_back(func, first, std::min(first + share, end), ctx);
  for (std::thread& thread : threads) thread.join();
  return 0;
}
