#include "shared_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "simt.h"

namespace simt {
namespace {

constexpr uint32_t kSeveral = kMostAgents - 1;  // the id of a grain's `read` that stands for several readers

// Nothing where it is the running thread, which fail() names.
std::string who(const Agent& agent) { return agent.id == self().id ? "" : describe(agent.id) + " "; }

std::string range_text(int64_t offset, size_t bytes) {
  return "shared bytes " + std::to_string(offset) + " to " + std::to_string(offset + static_cast<int64_t>(bytes) - 1);
}

}  // namespace

void Agent::release(Clock& to) {
  to.join(seen);
  if (starter) to.add(starter);
  to.add(now());
  if (++time == kMostTime) throw Error(Fault::misuse, "a thread synchronises more often than its clock can count");
}

SharedMemory::SharedMemory(size_t bytes)
    : bytes_(bytes),
      storage_(new std::byte[bytes + kAlignment]),
      grains_((bytes + kGrain - 1) / kGrain),
      written_at_(grains_.size()) {
  const auto begin = reinterpret_cast<uintptr_t>(storage_.get());
  data_ = storage_.get() + (kAlignment - begin % kAlignment) % kAlignment;
  std::memset(data_, 0xff, bytes);  // NaN in every type
}

void SharedMemory::check_place(int64_t offset, size_t bytes, size_t alignment, const char* verb, const Site& at) const {
  if (offset < 0 || offset + static_cast<int64_t>(bytes) > static_cast<int64_t>(bytes_))
    fail(Fault::bounds, std::string(verb) + " " + range_text(offset, bytes) + " of " + std::to_string(bytes_), at);
  if (offset % static_cast<int64_t>(alignment))
    fail(Fault::alignment,
         std::string(verb) + " " + range_text(offset, bytes) + ", which begin at no multiple of " +
             std::to_string(alignment),
         at);
}

void SharedMemory::race(const Agent& agent, const char* verb, int64_t offset, const Site& at, Epoch other,
                        const char* other_verb, const Site* other_at) const {
  fail(Fault::race,
       who(agent) + verb + " shared byte " + std::to_string(offset) + ", which " + describe(other.id) + " has " +
           other_verb + (other_at ? " at " + to_string(*other_at) : "") + ", and nothing orders the two",
       at);
}

const std::byte* SharedMemory::read(const Agent& agent, int64_t offset, size_t bytes, size_t alignment,
                                    const Site& at) {
  check_place(offset, bytes, alignment, "reads", at);
  for (size_t i = offset / kGrain, end = (offset + bytes + kGrain - 1) / kGrain; i < end; ++i) {
    Grain& grain = grains_[i];
    const auto byte = static_cast<int64_t>(i * kGrain);
    if (!grain.written)
      fail(Fault::poison, who(agent) + "reads shared byte " + std::to_string(byte) + ", which nobody has written", at);
    if (!agent.covers(grain.written)) race(agent, "reads", byte, at, grain.written, "written", &written_at_[i]);
    note_read(grain, agent);
  }
  return data_ + offset;
}

void SharedMemory::Readers::note(Epoch read) {
  constexpr size_t kFew = 8;
  const auto place = [&](uint32_t id) -> uint32_t& {
    if (places.size() <= id) places.resize(id + 1);
    return places[id];
  };
  if (places.empty()) {
    const auto at = std::find_if(reads.begin(), reads.end(), [&](const Epoch& other) { return other.id == read.id; });
    if (at != reads.end()) {
      *at = read;
      return;
    }
    reads.push_back(read);
    if (reads.size() <= kFew) return;
    for (uint32_t i = 0; i < reads.size(); ++i) place(reads[i].id) = i + 1;
  } else if (const uint32_t at = place(read.id)) {
    reads[at - 1] = read;
  } else {
    reads.push_back(read);
    place(read.id) = static_cast<uint32_t>(reads.size());
  }
}

void SharedMemory::Readers::clear() {
  reads.clear();
  places.clear();
}

void SharedMemory::note_read(Grain& grain, const Agent& agent) {
  if (grain.read.id != kSeveral) {
    if (agent.covers(grain.read)) {  // also where there was none
      grain.read = agent.now();
      return;
    }
    if (free_readers_.empty()) {
      free_readers_.push_back(static_cast<uint32_t>(readers_.size()));
      readers_.emplace_back();
    }
    const Epoch first = std::exchange(grain.read, {kSeveral, free_readers_.back()});
    free_readers_.pop_back();
    readers_[grain.read.time].note(first);
  }
  readers_[grain.read.time].note(agent.now());
}

void SharedMemory::check_readers(Grain& grain, const Agent& agent, int64_t offset, const Site& at) {
  const auto check = [&](Epoch read) {
    if (!agent.covers(read)) race(agent, "writes", offset, at, read, "read", nullptr);
  };
  if (grain.read.id != kSeveral) return check(grain.read);
  Readers& readers = readers_[grain.read.time];
  for (const Epoch read : readers.reads) check(read);
  readers.clear();
  free_readers_.push_back(grain.read.time);
}

std::byte* SharedMemory::write(const Agent& agent, int64_t offset, size_t bytes, size_t alignment, const Site& at) {
  check_place(offset, bytes, alignment, "writes", at);
  for (size_t i = offset / kGrain, end = (offset + bytes + kGrain - 1) / kGrain; i < end; ++i) {
    Grain& grain = grains_[i];
    const auto byte = static_cast<int64_t>(i * kGrain);
    if (!agent.covers(grain.written)) race(agent, "writes", byte, at, grain.written, "written", &written_at_[i]);
    check_readers(grain, agent, byte, at);
    grain = {agent.now(), {}};
    written_at_[i] = at;
  }
  return data_ + offset;
}

}  // namespace simt
