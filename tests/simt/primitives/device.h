// The host twin of csrc/cuda/primitives/device.h: plain memory, watched by AddressSanitizer where that is compiled in.
#pragma once

#include <primitives/cuda.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cnnkern::cuda {

constexpr bool kOnGpu = false;

inline void* allocate(size_t bytes) {
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!memory) throw std::bad_alloc();
  return memory;
}
inline void release(void* memory) { std::free(memory); }
inline void upload(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
inline void download(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

#if defined(__SANITIZE_ADDRESS__)
inline void forbid(void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void allow(void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
inline void forbid(void*, size_t) {}
inline void allow(void*, size_t) {}
#endif

inline int capability_of_device() { return 90; }
inline double median_seconds(const std::function<void(void*)>&, int = 9) {
  throw std::runtime_error("there is no GPU to time kernels on");
}

}  // namespace cnnkern::cuda
