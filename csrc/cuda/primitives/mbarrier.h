// Barriers in shared memory that count arrivals and bytes, and barriers among warps and blocks (PTX ISA, "mbarrier",
// "barrier.cluster"; sm_90).
//
// An mbarrier goes from phase to phase. A phase ends when as many arrivals as it was made for, and all the bytes that
// it was told to expect, have come; the next one begins in that moment. wait(parity) returns when the phase of that
// parity (0, 1, 0, ... from the first on) has ended: a wait for parity 1 on a barrier that was just made returns at
// once.
#pragma once

#include <primitives/shared.h>

namespace cnnkern::cuda {

class Barrier {
 public:
  __device__ explicit Barrier(Shared<uint64_t> at) : at_(at) {}

  // By one thread, before publish_barriers() and a barrier of all threads that use it.
  __device__ void make(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
  }
  // One arrival; everything that this thread did before is done for who waits.
  __device__ void arrive() const {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
  }
  // One arrival at the barrier in the same place of a block of the cluster. It publishes what this thread did to its
  // own block alone (a release to the cluster would wait for all its writes to global memory): enough after reads.
  __device__ void arrive_at(int block) const {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(address()),
        "r"(block)
        : "memory");
  }
  // One arrival that also tells the present phase to expect bytes from the copy engine.
  __device__ void expect(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes)
                 : "memory");
  }
  __device__ void wait(int parity) const {
    uint32_t ended;
    do {
      asm volatile(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}"
          : "=r"(ended)
          : "r"(address()), "r"(parity)
          : "memory");
    } while (!ended);
  }

  __device__ uint32_t address() const { return at_.address(); }

 private:
  Shared<uint64_t> at_;
};

// Makes the barriers that this thread made known to the copy engine and to the cluster.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Waits for all threads of all blocks of the cluster.
__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Waits for the four warps of a warpgroup; `id`: 1 to 15, one for each warpgroup.
__device__ inline void sync_warpgroup(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }

}  // namespace cnnkern::cuda
