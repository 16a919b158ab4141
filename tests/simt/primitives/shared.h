// The host twin of csrc/cuda/primitives/shared.h: every access is checked (shared_memory.h).
#pragma once

#include <primitives/cuda.h>
#include <primitives/numeric.h>

namespace cnnkern::cuda {

template <class T> class Shared {
 public:
  Shared(simt::Block* block, int64_t at) : block_(block), at_(at) {}

  Shared operator+(int elements) const { return Shared(block_, offset(elements)); }
  template <class U> Shared<U> as() const { return Shared<U>(block_, at_); }

  T load(int i = 0, simt::Site at = simt::Site::current()) const { return get<T>(i, at); }
  void store(int i, T v, simt::Site at = simt::Site::current()) const { put(i, v, at); }
  template <int N> Vector<T, N> load_vector(int i = 0, simt::Site at = simt::Site::current()) const {
    return get<Vector<T, N>>(i, at);
  }
  template <int N> void store_vector(int i, const Vector<T, N>& v, simt::Site at = simt::Site::current()) const {
    put(i, v, at);
  }

  // A block of the cluster and an offset in its shared memory, as in the shared window of a GPU.
  uint32_t address() const { return static_cast<uint32_t>(block_->rank) << 24 | static_cast<uint32_t>(at_); }

  // Of the host build alone.
  simt::Block& block() const { return *block_; }
  int64_t offset(int i = 0) const { return at_ + i * static_cast<int64_t>(sizeof(T)); }

 private:
  template <class V> V get(int i, const simt::Site& at) const {
    V v;
    std::memcpy(static_cast<void*>(&v), block_->memory->read(simt::self(), offset(i), sizeof v, alignof(V), at),
                sizeof v);
    return v;
  }
  template <class V> void put(int i, const V& v, const simt::Site& at) const {
    std::memcpy(block_->memory->write(simt::self(), offset(i), sizeof v, alignof(V), at), &v, sizeof v);
  }

  simt::Block* block_;
  int64_t at_;  // bytes
};

template <class T> Shared<T> shared_memory(int offset = 0) { return Shared<T>(simt::self().block, offset); }

}  // namespace cnnkern::cuda
