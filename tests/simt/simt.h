// A GPU made of fibers: runs a kernel on the CPU, a thread of the kernel on a fiber, and finds what fibers would hide.
//
// A launch takes the grid's clusters one after the other; all threads of a cluster's blocks live together, and each
// runs until it has to wait. What is checked:
//   shared memory   bounds, alignment, reads of what nobody has written, races (shared_memory.h)
//   barriers        that all who are counted arrive, and at the same line
//   warps           that the lanes of a mask carry out the same operation; that no lane needed is gone
//   asynchrony      what an asynchronous operation does happens late, and is seen by who has waited for it
// Each fault is an Error that names the kernel, the block, the thread and the line.
//
// Not watched: races on global memory (AddressSanitizer watches its bounds), registers and time.
//
// The order in which threads run is by the seed: 0 forwards, 1 backwards, any other at random.
//
// To put a new primitive on top of this:
//   - Who acts on shared memory is an Agent: self() or, for what runs beside the threads, start_agent(). Accesses are
//     block.memory->read() and write() with that agent, made when the operation is issued: what is not ordered before
//     that is then a race, and so is every later access by a thread that has not acquired the agent's clock.
//   - A thing to wait for (an mbarrier, a group of copies) has a Clock. Who completes it does agent.release(clock), who
//     has waited does self().acquire(clock). Threads wait in a Waiting.
//   - later(effect) puts off what an asynchronous operation does (the bytes it moves, the arrival it makes) until no
//     thread can go on or, by the seed, some time before that.
//   - What several threads carry out together is a Meeting.
//   - What a primitive has to remember while a cluster runs is in self().block->cluster->kept<ItsState>().
#pragma once

#include <vector_types.h>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <typeindex>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"

namespace simt {

struct Block;
struct Thread;

// The thread that runs.
extern Thread* self_pointer;
inline Thread& self() { return *self_pointer; }

// Throws an Error that says where in the launch it happened.
[[noreturn]] void fail(Fault fault, const std::string& what, const Site& at);
// "thread 7" or, of something asynchronous, what it is.
std::string describe(uint32_t agent_id);

// An agent that begins now, having seen what the running thread has. The id of an earlier one is taken again only when
// this thread has seen all of its acts, so that having seen the one does not pass for having seen the other.
Agent start_agent(const std::string& what);
// Ids of agents, the threads' first, are below this.
uint32_t agent_count();
// The agent acts no more.
void end_agent(const Agent& agent);

// Has `effect` done when no thread can go on or, by the seed, earlier; several in any order. It runs between threads,
// so that self() is nobody in particular.
void later(std::function<void()> effect);

// Threads that wait for something.
class Waiting {
 public:
  // Lets others run until wake(). `what` completes "thread 7 waits at ...".
  void wait(const char* what, const Site& at);
  void wake();
  const std::vector<Thread*>& threads() const { return threads_; }

 private:
  std::vector<Thread*> threads_;
};

// A barrier that counts arrivals (PTX ISA, bar and barrier.cluster): the arrivals of a phase happen before what follows
// its wait.
class Barrier {
 public:
  // Counts the running thread's arrival; returns the phase that it belongs to.
  uint32_t arrive(int expected, const char* what, const Site& at);
  void wait(uint32_t phase, const char* what, const Site& at);
  // Both. All who come together like this have to be at the same line if `aligned`.
  void sync(int expected, bool aligned, const char* what, const Site& at);
  // A thread has exited: where the barrier is for all that are left, it may be complete now.
  void complete_if(int expected);

 private:
  int arrived_ = 0;
  uint32_t phase_ = 0;
  Clock clock_, completed_;
  Waiting syncing_, waiting_;
  Site site_;
};

// Threads that carry out one operation together, each with a deposit of its own: the last to come does it for all. It
// orders nothing unless the operation says so.
class Meeting {
 public:
  using Perform = void (*)(void* const* deposits);
  struct Operation {
    const char* what;
    Perform perform;  // may be null; gets the deposits by slot, null where nobody is
    bool orders_memory = false;
    bool needs_all = false;  // also those that have exited: then it is an error
  };
  // Slot `slot` of those in `expected`.
  void join(int slot, void* deposit, int expected, const Operation& operation, const Site& at);
  bool empty() const { return arrived_ == 0; }
  int arrived() const { return arrived_; }
  const Operation& operation() const { return operation_; }
  const Site& site() const { return site_; }
  void complete();

 private:
  int arrived_ = 0;
  Operation operation_{};
  Site site_;
  std::array<void*, 128> deposits_{};
  Clock clock_;
  Waiting waiting_;
};

struct Warp {
  uint32_t live = 0;  // lanes that have not exited
  struct Masked {
    uint32_t mask;
    Meeting meeting;
  };
  std::vector<std::unique_ptr<Masked>> meetings;  // one a mask
};

// A group of asynchronous copies of one thread: bytes that are on their way.
struct Copies {
  struct Copy {
    std::byte* to;
    size_t bytes;
    std::array<std::byte, 16> data;
  };
  std::vector<Copy> copies;
  Epoch last;
};

struct Thread : Agent {
  uint3 thread_index{}, block_index{};
  Block* block = nullptr;
  int lane = 0, warp = 0;
  bool exited = false;
  const char* waits_for = nullptr;
  Site waits_at;
  Fiber* fiber = nullptr;
  std::unique_ptr<Agent> copier;  // makes this thread's asynchronous copies
  Copies open;                    // since the last commit
  std::deque<Copies> committed;   // oldest first
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  Barrier barrier;
  int live = 0;  // threads of all its blocks that have not exited

  // What a primitive on top of this keeps while the cluster runs: one object of each type, made when it is first asked
  // for.
  template <class T> T& kept() {
    std::shared_ptr<void>& object = objects_[typeid(T)];
    if (!object) object = std::make_shared<T>();
    return *static_cast<T*>(object.get());
  }

 private:
  std::map<std::type_index, std::shared_ptr<void>> objects_;
};

struct Block {
  Cluster* cluster = nullptr;
  uint3 index{};
  int rank = 0;  // in its cluster
  std::unique_ptr<SharedMemory> memory;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  int live = 0;
  std::array<Barrier, 16> barriers;  // 0 is that of __syncthreads

  // What others of its cluster did to its shared memory. Of each act a thread of it has to know in the end: else the
  // act might as well have come after the block had ended.
  struct Foreign {
    Epoch act;
    Site at;
  };
  std::vector<Foreign> foreign;
  void note(const Agent& agent, const Site& at);
};

// The lanes of `mask` of the running thread's warp carry out an operation; deposits are by lane.
void meet_warp(uint32_t mask, void* deposit, const Meeting::Operation& operation, const Site& at);

// Asynchronous copies of the running thread (PTX ISA, cp.async): zeros where `from` is null. What they write is there,
// for this thread, once it has waited for their group.
void copy_async(Block& block, int64_t to, const void* from, size_t bytes, const Site& at);
void commit_copies();
void wait_copies(size_t pending);

// --- launches --------------------------------------------------------------------------------------------------------

struct Launch {
  std::string name;
  dim3 grid, block;
  size_t shared_bytes = 0;
  int cluster = 1;
};
extern Launch current_launch;
extern size_t most_shared_bytes;  // of a block, in all launches since it was set to 0

void set_seed(uint64_t seed);

// Runs body(params) in every thread.
void run(const Launch& launch, void (*body)(const void* params), const void* params);

}  // namespace simt
