// Shared memory. A kernel takes all of it dynamically and reads and writes it through Shared<T> alone, which the host
// build watches for races and for reads of what nobody wrote.
#pragma once

#include <primitives/cuda.h>
#include <primitives/numeric.h>

namespace cnnkern::cuda {

// A pointer into the block's shared memory.
template <class T> class Shared {
 public:
  __device__ explicit Shared(T* at) : at_(at) {}

  __device__ Shared operator+(int elements) const { return Shared(at_ + elements); }
  template <class U> __device__ Shared<U> as() const { return Shared<U>(reinterpret_cast<U*>(at_)); }

  __device__ T load(int i = 0) const { return at_[i]; }
  __device__ void store(int i, T v) const { at_[i] = v; }
  // N elements from i on; their address is a multiple of their size.
  template <int N> __device__ Vector<T, N> load_vector(int i = 0) const { return cuda::load_vector<N>(at_ + i); }
  template <int N> __device__ void store_vector(int i, const Vector<T, N>& v) const {
    cuda::store_vector<N>(at_ + i, v);
  }

  // In the shared window, as PTX takes it.
  __device__ uint32_t address() const { return static_cast<uint32_t>(__cvta_generic_to_shared(at_)); }

 private:
  T* at_;
};

// The block's dynamic shared memory from a byte offset on; it begins at a multiple of 1024 bytes, as swizzled tiles need.
template <class T> __device__ Shared<T> shared_memory(int offset = 0) {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  return Shared<T>(reinterpret_cast<T*>(dynamic_shared_memory + offset));
}

}  // namespace cnnkern::cuda
