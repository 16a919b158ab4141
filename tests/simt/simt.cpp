#include "simt.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>
#include <map>
#include <random>
#include <utility>

namespace simt {

Thread* self_pointer = nullptr;
Launch current_launch;
size_t most_shared_bytes = 0;

namespace {

struct AgentRecord {
  std::string what;
  uint32_t last = 0;  // its last act
  bool acting = true;
};

// What the launch that is under way has.
struct Machine {
  uint64_t seed = 0;
  std::mt19937_64 random;
  Fiber main;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from launch to launch
  std::unique_ptr<Cluster> cluster;
  std::deque<Thread*> runnable;
  std::deque<std::function<void()>> effects;
  std::vector<AgentRecord> agents;  // those that are no threads
  uint32_t threads = 0;             // of the cluster; their ids are the first
  void (*body)(const void*) = nullptr;
  const void* params = nullptr;
  std::exception_ptr error;

  bool chance(int one_in) { return seed > 1 && random() % one_in == 0; }
} machine;

std::string to_string(const uint3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

// --- scheduling ------------------------------------------------------------------------------------------------------

void make_runnable(const std::vector<Thread*>& threads) {
  if (machine.seed == 1) machine.runnable.insert(machine.runnable.end(), threads.rbegin(), threads.rend());
  else machine.runnable.insert(machine.runnable.end(), threads.begin(), threads.end());
}

void run_effect() {
  auto& effects = machine.effects;
  if (machine.seed > 1) std::swap(effects.front(), effects[machine.random() % effects.size()]);
  if (machine.seed == 1) std::swap(effects.front(), effects.back());
  const std::function<void()> effect = std::move(effects.front());
  effects.pop_front();
  effect();
}

[[noreturn]] void report_deadlock() {
  std::map<std::string, std::vector<std::string>> waiting;  // what for: who
  for (const auto& block : machine.cluster->blocks) {
    for (const auto& thread : block->threads) {
      if (thread->exited) continue;
      waiting[std::string(thread->waits_for) + " at " + simt::to_string(thread->waits_at)].push_back(
          describe(thread->id));
    }
  }
  std::string text = "all that are left wait";
  for (const auto& [what, who] : waiting) {
    text += "; for " + what + ": " + who.front();
    if (who.size() > 1) text += " to " + who.back() + " (" + std::to_string(who.size()) + ")";
  }
  throw Error(Fault::deadlock, current_launch.name + ": " + text);
}

// Leaves the running thread, which waits or has exited, for the next one; returns when its turn has come again.
void go_on() {
  Thread* const me = self_pointer;
  if (!machine.effects.empty() && machine.chance(4)) run_effect();
  while (machine.runnable.empty()) {
    if (!machine.effects.empty()) run_effect();
    else if (machine.cluster->live) report_deadlock();
    else return me->fiber->switch_to(machine.main);
  }
  if (machine.seed > 1) {
    std::swap(machine.runnable.front(), machine.runnable[machine.random() % machine.runnable.size()]);
  }
  Thread* const next = machine.runnable.front();
  machine.runnable.pop_front();
  if (next == me) return;
  self_pointer = next;
  me->fiber->switch_to(*next->fiber);
}

void check_foreign(const Block& block) {
  Clock known;
  for (const auto& thread : block.threads) known.join(thread->seen);
  for (const auto& [act, at] : block.foreign) {
    if (!known.covers(act))
      fail(Fault::misuse, "the last of its block ends without knowing what " + describe(act.id) + " did to it", at);
  }
}

void exit_thread() {
  Thread& me = self();
  Block& block = *me.block;
  me.exited = true;
  --block.cluster->live;
  --block.live;
  Warp& warp = block.warps[me.warp];
  warp.live &= ~(1u << me.lane);
  block.barriers[0].complete_if(block.live);
  block.cluster->barrier.complete_if(block.cluster->live);
  for (const auto& masked : warp.meetings) {
    Meeting& meeting = masked->meeting;
    if (meeting.empty() || !(masked->mask >> me.lane & 1)) continue;
    if (meeting.operation().needs_all)
      fail(Fault::divergence, std::string("exits while lanes of its warp wait for it at ") + meeting.operation().what,
           meeting.site());
    if (meeting.arrived() == std::popcount(masked->mask & warp.live)) meeting.complete();
  }
  if (!block.live) check_foreign(block);
}

// What every fiber runs, thread after thread.
void fiber_main() {
  for (;;) {
    try {
      machine.body(machine.params);
      exit_thread();
      go_on();
    } catch (...) {
      machine.error = std::current_exception();
    }
    if (machine.error) self().fiber->switch_to(machine.main);
  }
}

// --- launches --------------------------------------------------------------------------------------------------------

std::unique_ptr<Block> make_block(const Launch& launch, Cluster& cluster, int rank, uint3 index) {
  auto block = std::make_unique<Block>();
  const int threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  block->cluster = &cluster;
  block->rank = rank;
  block->index = index;
  block->memory = std::make_unique<SharedMemory>(launch.shared_bytes);
  block->live = threads;
  block->warps.resize((threads + 31) / 32);
  for (int i = 0; i < threads; ++i) {
    auto thread = std::make_unique<Thread>();
    const auto x = static_cast<unsigned>(i);
    thread->thread_index = {x % launch.block.x, x / launch.block.x % launch.block.y,
                            x / (launch.block.x * launch.block.y)};
    thread->block_index = index;
    thread->block = block.get();
    thread->lane = i % 32;
    thread->warp = i / 32;
    thread->in_order = true;
    thread->id = machine.threads++;
    if (machine.fibers.size() <= thread->id) machine.fibers.push_back(std::make_unique<Fiber>(fiber_main));
    thread->fiber = machine.fibers[thread->id].get();
    block->warps[thread->warp].live |= 1u << thread->lane;
    block->threads.push_back(std::move(thread));
  }
  return block;
}

void run_cluster(const Launch& launch, uint3 first) {
  machine.threads = 0;
  machine.agents.clear();
  machine.cluster = std::make_unique<Cluster>();
  Cluster& cluster = *machine.cluster;
  std::vector<Thread*> threads;
  for (int rank = 0; rank < launch.cluster; ++rank) {
    cluster.blocks.push_back(
        make_block(launch, cluster, rank, {first.x + static_cast<unsigned>(rank), first.y, first.z}));
    cluster.live += cluster.blocks.back()->live;
    for (const auto& thread : cluster.blocks.back()->threads) threads.push_back(thread.get());
  }
  make_runnable(threads);
  self_pointer = machine.runnable.front();
  machine.runnable.pop_front();
  machine.main.switch_to(*self_pointer->fiber);
  self_pointer = nullptr;
  if (!machine.error) return;
  machine.runnable.clear();
  machine.effects.clear();
  machine.fibers.clear();  // they are in the midst of something
  std::rethrow_exception(std::exchange(machine.error, nullptr));
}

void check_launch(const Launch& launch) {
  const auto refuse = [&](const std::string& why) { throw Error(Fault::misuse, launch.name + ": " + why); };
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  if (threads < 1 || threads > 1024) refuse(std::to_string(threads) + " threads in a block");
  if (threads * static_cast<unsigned>(launch.cluster) + 1 >= kMostAgents) refuse("more threads than clocks tell apart");
  if (launch.shared_bytes > 227 * 1024) refuse(std::to_string(launch.shared_bytes) + " bytes of shared memory");
  if (launch.cluster < 1 || launch.cluster > 8 || launch.grid.x % static_cast<unsigned>(launch.cluster))
    refuse("clusters of " + std::to_string(launch.cluster) + " in a grid of " + std::to_string(launch.grid.x));
}

}  // namespace

void set_seed(uint64_t seed) {
  machine.seed = seed;
  machine.random.seed(seed);
}

void run(const Launch& launch, void (*body)(const void*), const void* params) {
  check_launch(launch);
  current_launch = launch;
  most_shared_bytes = std::max(most_shared_bytes, launch.shared_bytes);
  machine.body = body;
  machine.params = params;
  const auto cluster = static_cast<unsigned>(launch.cluster);
  const uint64_t columns = launch.grid.x / cluster, rows = launch.grid.y, all = columns * rows * launch.grid.z;
  for (uint64_t i = 0; i < all; ++i) {
    const uint64_t at = machine.seed == 1 ? all - 1 - i : i;
    run_cluster(launch, {static_cast<unsigned>(at % columns) * cluster, static_cast<unsigned>(at / columns % rows),
                         static_cast<unsigned>(at / columns / rows)});
  }
  machine.cluster.reset();
}

// --- agents ----------------------------------------------------------------------------------------------------------

void fail(Fault fault, const std::string& what, const Site& at) {
  std::string where = current_launch.name;
  if (self_pointer) where += ", block " + to_string(self().block_index) + ", " + describe(self().id);
  throw Error(fault, where + ", " + to_string(at) + ": " + what);
}

std::string describe(uint32_t id) {
  if (id >= machine.threads) return machine.agents[id - machine.threads].what;
  const auto per_block = machine.threads / machine.cluster->blocks.size();
  std::string text = "thread " + std::to_string(id % per_block);
  if (machine.cluster->blocks.size() > 1) text += " of block " + std::to_string(id / per_block) + " of the cluster";
  return text;
}

Agent start_agent(const std::string& what) {
  auto& agents = machine.agents;
  size_t i = 0;
  const auto id = [&] { return machine.threads + static_cast<uint32_t>(i); };
  while (i < agents.size() && (agents[i].acting || !self().covers({id(), agents[i].last}))) ++i;
  if (i == agents.size()) agents.emplace_back();
  if (id() + 1 >= kMostAgents)
    throw Error(Fault::misuse, current_launch.name + ": too many asynchronous operations at once");
  agents[i].what = what;
  agents[i].acting = true;
  Agent agent{.id = id(), .time = agents[i].last + 1, .starter = self().now(), .seen = self().seen};
  ++self().time;
  return agent;
}

uint32_t agent_count() { return machine.threads + static_cast<uint32_t>(machine.agents.size()); }

void end_agent(const Agent& agent) {
  AgentRecord& record = machine.agents[agent.id - machine.threads];
  record.last = agent.time;
  record.acting = false;
}

void Block::note(const Agent& agent, const Site& at) {
  if (self().block != this) foreign.push_back({agent.now(), at});
}

void later(std::function<void()> effect) { machine.effects.push_back(std::move(effect)); }

// --- waiting ---------------------------------------------------------------------------------------------------------

void Waiting::wait(const char* what, const Site& at) {
  Thread& me = self();
  me.waits_for = what;
  me.waits_at = at;
  threads_.push_back(&me);
  go_on();
}

void Waiting::wake() {
  make_runnable(threads_);
  threads_.clear();
}

uint32_t Barrier::arrive(int expected, const char* what, const Site& at) {
  const uint32_t phase = phase_;
  self().release(clock_);
  if (++arrived_ > expected) fail(Fault::misuse, std::string("more threads than it counts arrive at ") + what, at);
  complete_if(expected);
  return phase;
}

void Barrier::wait(uint32_t phase, const char* what, const Site& at) {
  if (phase == phase_) waiting_.wait(what, at);
  else self().acquire(completed_);
}

void Barrier::sync(int expected, bool aligned, const char* what, const Site& at) {
  if (syncing_.threads().empty()) site_ = at;
  else if (aligned && !same(site_, at))
    fail(Fault::divergence, "waits for " + std::string(what) + " while others wait for it at " + to_string(site_), at);
  const uint32_t phase = arrive(expected, what, at);
  if (phase == phase_) syncing_.wait(what, at);
  else self().seen = completed_;
}

void Barrier::complete_if(int expected) {
  if (arrived_ == 0 || arrived_ != expected) return;
  completed_ = std::exchange(clock_, {});
  arrived_ = 0;
  ++phase_;
  for (Thread* thread : syncing_.threads()) thread->seen = completed_;  // it covers what they had seen
  for (Thread* thread : waiting_.threads()) thread->acquire(completed_);
  syncing_.wake();
  waiting_.wake();
}

void Meeting::join(int slot, void* deposit, int expected, const Operation& operation, const Site& at) {
  if (!arrived_) {
    operation_ = operation;
    site_ = at;
  } else if (operation.perform != operation_.perform || !same(site_, at)) {
    fail(Fault::divergence,
         std::string("is at ") + operation.what + " while others, which should take part, are at " + operation_.what +
             " (" + to_string(site_) + ")",
         at);
  }
  deposits_[slot] = deposit;
  ++arrived_;
  if (operation.orders_memory) self().release(clock_);
  if (arrived_ < expected) return waiting_.wait(operation.what, at);
  if (operation.orders_memory) self().seen = clock_;
  complete();
}

void Meeting::complete() {
  if (operation_.perform) operation_.perform(deposits_.data());
  if (operation_.orders_memory) {
    for (Thread* thread : waiting_.threads()) thread->seen = clock_;
    clock_ = {};
  }
  deposits_.fill(nullptr);
  arrived_ = 0;
  waiting_.wake();
}

void meet_warp(uint32_t mask, void* deposit, const Meeting::Operation& operation, const Site& at) {
  Thread& me = self();
  Warp& warp = me.block->warps[me.warp];
  if (!(mask >> me.lane & 1)) fail(Fault::misuse, std::string("is not in the mask of its ") + operation.what, at);
  if (operation.needs_all && (mask & ~warp.live))
    fail(Fault::divergence,
         "lane " + std::to_string(std::countr_zero(mask & ~warp.live)) + " has exited and takes no part in " +
             operation.what,
         at);
  auto masked = warp.meetings.begin();
  while (masked != warp.meetings.end() && (*masked)->mask != mask) ++masked;
  if (masked == warp.meetings.end())
    masked = warp.meetings.insert(masked, std::make_unique<Warp::Masked>(Warp::Masked{mask, {}}));
  (*masked)->meeting.join(me.lane, deposit, std::popcount(mask & warp.live), operation, at);
}

// --- asynchronous copies ---------------------------------------------------------------------------------------------

void copy_async(Block& block, int64_t to, const void* from, size_t bytes, const Site& at) {
  Thread& me = self();
  if (!me.copier) me.copier = std::make_unique<Agent>(start_agent("an asynchronous copy of " + describe(me.id)));
  if (reinterpret_cast<uintptr_t>(from) % bytes)
    fail(Fault::alignment, "copies from a global address that is no multiple of " + std::to_string(bytes), at);
  me.copier->starter =
      me.now();  // no later act of this thread is mistaken for one before: nobody else acquires the copier
  me.copier->seen = me.seen;
  Copies::Copy copy{block.memory->write(*me.copier, to, bytes, bytes, at), bytes, {}};
  if (from) std::memcpy(copy.data.data(), from, bytes);
  me.open.copies.push_back(copy);
}

void commit_copies() {
  Thread& me = self();
  me.open.last = me.copier ? me.copier->now() : Epoch{};
  me.committed.push_back(std::exchange(me.open, {}));
  if (me.copier) ++me.copier->time;
}

void wait_copies(size_t pending) {
  Thread& me = self();
  for (; me.committed.size() > pending; me.committed.pop_front()) {
    const Copies& group = me.committed.front();
    for (const Copies::Copy& copy : group.copies) std::memcpy(copy.to, copy.data.data(), copy.bytes);
    if (!group.copies.empty()) me.seen.add(group.last);
  }
}

}  // namespace simt
