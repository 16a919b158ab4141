// A ring of slots in shared memory between one thread that has tiles copied in and the warps that multiply them.
//
// Who owns a slot, and what hands it on:
//   producer      from the end of a phase of empty(slot), to which every consumer warp of every block of the cluster
//                 arrives once, until its copies are issued
//   copy engine   until the phase of full(slot) ends: the producer's one arrival, and all bytes that it announced
//   consumers     from the end of that phase until a warp's products that read the slot are complete: it then arrives
//                 at empty(slot) of every block
// In a cluster a block also receives copies that its neighbour has issued. They may come before the producer of this
// block has announced them: its arrival is still missing then, so the phase cannot end early. They cannot come before
// the slot is free, since the neighbour has waited for this block's consumers too.
#pragma once

#include <primitives/grid.h>
#include <primitives/mbarrier.h>
#include <primitives/mma_sm90.h>

namespace cnnkern::cuda {

constexpr int kWarpgroup = 128, kConsumers = 2;  // threads; warpgroups that multiply
constexpr int kRoleThreads = (kConsumers + 1) * kWarpgroup;
constexpr int kSharedLimit = most_shared_bytes(90);

// Registers of a thread of the third warpgroup, and of the others. A block begins with as many for each thread as
// __launch_bounds__ gives it, in steps of 8; who asks for what the others have not given back waits forever.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <=
              (kConsumers + 1) * (65536 / kRoleThreads / 8 * 8));

// The roles of a block's warpgroups: consume(group) by each of two, with most of the registers, and produce() by one
// thread of the third.
template <class Produce, class Consume> __device__ void take_roles(const Produce& produce, const Consume& consume) {
  // The same in all lanes, which the compiler cannot know of threadIdx.
  const int group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (group == kConsumers) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x == kConsumers * kWarpgroup) produce();
  } else {
    take_registers<kConsumerRegisters>();
    consume(group);
  }
}

template <int kSlots, int kCluster> class Ring {
  static constexpr int kConsumerWarps = kConsumers * kWarpgroup / 32;

 public:
  static constexpr int kBytes = 2 * kSlots * static_cast<int>(sizeof(uint64_t));

  // Which slot comes next, and the parity of its phase of full; empty is one phase behind.
  struct Turn {
    int slot = 0, parity = 0;
    __device__ void next() {
      if (++slot == kSlots) slot = 0, parity ^= 1;
    }
  };

  __device__ explicit Ring(Shared<uint64_t> barriers) : barriers_(barriers) {}

  // By all threads of the block, once.
  __device__ void make() const {
    if (threadIdx.x == 0) {
      for (int slot = 0; slot < kSlots; ++slot) {
        full(slot).make(1);
        empty(slot).make(kConsumerWarps * kCluster);
      }
      publish_barriers();
    }
    if constexpr (kCluster > 1) sync_cluster();
    else __syncthreads();
  }

  __device__ Barrier full(int slot) const { return Barrier(barriers_ + slot); }

  // The producer takes a slot when it is free.
  __device__ void take(const Turn& turn) const { empty(turn.slot).wait(turn.parity ^ 1); }
  // Consumers, by warp: all of this warp's reads of the slot are complete.
  __device__ void release(int slot, int lane) const {
    if constexpr (kCluster > 1) {
      if (lane < kCluster) empty(slot).arrive_at(lane);
    } else if (lane == 0) empty(slot).arrive();
  }
  // Consumers: the next `steps` slots one after the other; multiply(slot, step) issues the products of one. While the
  // tensor cores are at one step, its slot and the one before are held.
  template <class Multiply> __device__ void consume(Turn& turn, int steps, const Multiply& multiply) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int before = 0;
    for (int step = 0; step < steps; ++step, turn.next()) {
      full(turn.slot).wait(turn.parity);
      begin_products();
      multiply(turn.slot, step);
      commit_products();
      wait_products<1>();  // the step before this
      if (step > 0) release(before, lane);
      before = turn.slot;
    }
    wait_products<0>();
    release(before, lane);
  }
  // The producer leaves last: until every slot is free, the neighbours' arrivals and copies are still to come.
  __device__ void drain(Turn turn) const {
    if constexpr (kCluster > 1) {
      for (int slot = 0; slot < kSlots; ++slot, turn.next()) take(turn);
    }
  }

 private:
  __device__ Barrier empty(int slot) const { return Barrier(barriers_ + kSlots + slot); }

  Shared<uint64_t> barriers_;
};

}  // namespace cnnkern::cuda
