// The host twin of csrc/cuda/primitives/mbarrier.h.
#pragma once

#include <primitives/shared.h>

#include "../sm90.h"

namespace cnnkern::cuda {

class Barrier {
 public:
  explicit Barrier(Shared<uint64_t> at) : at_(at) {}

  void make(int arrivals, simt::Site at = simt::Site::current()) const { simt::make_mbarrier(place(), arrivals, at); }
  void arrive(simt::Site at = simt::Site::current()) const { simt::arrive(place(), 0, at); }
  void arrive_at(int block, simt::Site at = simt::Site::current()) const {
    simt::arrive({at_.block().cluster->blocks[block].get(), at_.offset()}, 0, at);
  }
  void expect(int bytes, simt::Site at = simt::Site::current()) const { simt::arrive(place(), bytes, at); }
  void wait(int parity, simt::Site at = simt::Site::current()) const { simt::wait(place(), parity, at); }

  simt::Place place() const { return {&at_.block(), at_.offset()}; }  // of the host build alone

 private:
  Shared<uint64_t> at_;
};

inline void publish_barriers() { simt::publish_mbarriers(); }

inline void sync_cluster(simt::Site at = simt::Site::current()) {
  simt::Cluster& cluster = *simt::self().block->cluster;
  cluster.barrier.sync(cluster.live, true, "sync_cluster", at);
}

inline void sync_warpgroup(int id, simt::Site at = simt::Site::current()) {
  simt::self().block->barriers[id].sync(128, true, "sync_warpgroup", at);
}

}  // namespace cnnkern::cuda
