// The host twin of csrc/cuda/primitives/copy.h. A copy is made by an agent of its own: it has the place from when it is
// issued, and the bytes are there when the thread has waited for its group.
#pragma once

#include <primitives/shared.h>

namespace cnnkern::cuda {

template <int kBytes, class T>
void copy_async(Shared<T> to, const T* from, bool valid, simt::Site at = simt::Site::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  simt::copy_async(to.block(), to.offset(), valid ? from : nullptr, kBytes, at);
}

inline void commit_copies() { simt::commit_copies(); }

template <int kPending> void wait_copies() { simt::wait_copies(kPending); }

}  // namespace cnnkern::cuda
