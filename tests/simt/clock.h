// Vector clocks: who has seen how much of what others did.
//
// Everything that acts on shared memory is an agent: each thread, and each thing that runs beside the threads once one
// has started it (an asynchronous copy, a tensor core that reads shared memory). An agent's acts are numbered; a clock
// says, for each agent, up to which number its acts are known to have happened. Acts that neither agent's clock orders
// are concurrent (Lamport, "Time, clocks, and the ordering of events in a distributed system", CACM 1978).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace simt {

// An act: agent `id` at its time. Time 0 is before everything.
struct Epoch {
  uint32_t id : 12 = 0;
  uint32_t time : 20 = 0;
  explicit operator bool() const { return time != 0; }
  bool operator==(const Epoch&) const = default;
};
constexpr uint32_t kMostAgents = 1 << 12, kMostTime = 1 << 20;

// A clock. Copies share their numbers until one of them changes, as all threads do after a barrier.
class Clock {
 public:
  bool covers(Epoch act) const { return of(act.id) >= act.time; }
  uint32_t of(uint32_t id) const { return times_ && id < times_->size() ? (*times_)[id] : 0; }

  // From now on this clock covers that act.
  void add(Epoch act) {
    if (covers(act)) return;
    std::vector<uint32_t>& times = own(act.id + 1);
    times[act.id] = act.time;
  }
  // From now on this clock covers all that the other covers.
  void join(const Clock& other) {
    if (!other.times_ || other.times_ == times_ || other.times_ == joined_) return;
    joined_ = other.times_;
    if (!times_) {
      times_ = other.times_;
      return;
    }
    std::vector<uint32_t>& times = own(other.times_->size());
    for (size_t i = 0; i < other.times_->size(); ++i) times[i] = std::max(times[i], (*other.times_)[i]);
  }

 private:
  std::vector<uint32_t>& own(size_t size) {
    if (!times_) times_ = std::make_shared<std::vector<uint32_t>>();
    else if (times_.use_count() > 1) times_ = std::make_shared<std::vector<uint32_t>>(*times_);
    if (times_->size() < size) times_->resize(size);
    return *times_;
  }
  std::shared_ptr<std::vector<uint32_t>> times_, joined_;  // joined_: the last that was, so as not to do it again
};

}  // namespace simt
