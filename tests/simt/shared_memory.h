// A block's shared memory, with a record of who has written and read each part of it.
//
// An access is an error unless everything that it conflicts with happened before it, by the clock of who makes it: the
// last write and, for a write, the reads since (Flanagan and Freund, "FastTrack: efficient and precise dynamic race
// detection", PLDI 2009). So a missing barrier is found in whatever order the threads run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "clock.h"
#include "fault.h"

namespace simt {

// Who acts: a thread, or something asynchronous that a thread has started (start_agent() in simt.h).
struct Agent {
  uint32_t id = 0;
  uint32_t time = 1;      // of its next act
  bool in_order = false;  // each act happens before the next, as a thread's do
  Epoch starter{};        // the last act of who started it
  Clock seen;             // what else happened before its next act

  Epoch now() const { return {id, time}; }
  bool covers(Epoch act) const {
    if (act.id == id && in_order) return true;
    return (act.id == starter.id && act.time <= starter.time) || seen.covers(act);
  }
  // Whoever acquires `to` has seen what this agent has done and seen up to now.
  void release(Clock& to);
  void acquire(const Clock& from) { seen.join(from); }
};

class SharedMemory {
 public:
  static constexpr size_t kAlignment = 1024;  // of its beginning
  static constexpr size_t kGrain = 2;         // bytes that are watched as one: no access is smaller

  explicit SharedMemory(size_t bytes);

  // Checks an access to bytes from `offset` on, a multiple of `alignment`, and records it as the agent's next act.
  // What is returned holds the bytes. Throws Error.
  const std::byte* read(const Agent& agent, int64_t offset, size_t bytes, size_t alignment, const Site& at);
  std::byte* write(const Agent& agent, int64_t offset, size_t bytes, size_t alignment, const Site& at);

  // The bytes themselves, for what an asynchronous agent does after its access was recorded.
  std::byte* data() { return data_; }
  size_t size() const { return bytes_; }

 private:
  struct Grain {
    Epoch written, read;  // the last write; the last read since, or, of several, which of readers_ tells of them
  };
  // The last reads of several agents.
  struct Readers {
    std::vector<Epoch> reads;
    std::vector<uint32_t> places;  // by agent: 1 + where in `reads` it is; empty while these are few

    void note(Epoch read);
    void clear();
  };
  void check_place(int64_t offset, size_t bytes, size_t alignment, const char* verb, const Site& at) const;
  void note_read(Grain& grain, const Agent& agent);
  void check_readers(Grain& grain, const Agent& agent, int64_t offset, const Site& at);
  [[noreturn]] void race(const Agent& agent, const char* verb, int64_t offset, const Site& at, Epoch other,
                         const char* other_verb, const Site* other_at) const;

  size_t bytes_;
  std::unique_ptr<std::byte[]> storage_;
  std::byte* data_;
  std::vector<Grain> grains_;
  std::vector<Site> written_at_;
  std::vector<Readers> readers_;
  std::vector<uint32_t> free_readers_;
};

}  // namespace simt
