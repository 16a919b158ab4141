// The host GPU itself, tested: each kernel here comes right, and with one thing wrong that has to be told as what it
// is.
#include <primitives/copy.h>
#include <primitives/launcher.h>
#include <primitives/mma_sm80.h>

#include <cstdio>
#include <string>
#include <vector>

using namespace cnnkern::cuda;
using simt::Fault;

namespace {

struct Params {
  const float* from = nullptr;
  float* to = nullptr;
};
using KernelFunction = void (*)(Params);

int lane() { return static_cast<int>(threadIdx.x % 32); }
int thread() { return static_cast<int>(threadIdx.x); }

// --- shared memory ---------------------------------------------------------------------------------------------------

// Each thread reads its neighbour's number: the neighbour's write has to come before.
template <bool kRight> void write_then_read(Params o) {
  const auto shared = shared_memory<float>();
  shared.store(thread(), 0);
  __syncthreads();
  shared.store(thread(), thread());
  if (kRight) __syncthreads();
  o.to[thread() ^ 1] = shared.load(thread() ^ 1);
}

// The same by turns: the second write has to come after the reads of the first.
template <bool kRight> void read_then_write(Params o) {
  const auto shared = shared_memory<float>();
  shared.store(thread(), thread());
  __syncthreads();
  o.to[thread() ^ 1] = shared.load(thread() ^ 1);
  if (kRight) __syncthreads();
  shared.store(thread(), 0);
}

template <bool kRight> void write_twice(Params o) {
  const auto shared = shared_memory<float>();
  if (kRight ? thread() == 5 : lane() == 5) shared.store(0, 1);
  __syncthreads();
  o.to[thread()] = shared.load(0) + thread() - 1;
}

// Several readers, one of which the writer knows nothing of.
template <bool kRight> void read_by_all(Params o) {
  const auto shared = shared_memory<float>();
  if (thread() == 0) shared.store(0, 0);
  __syncthreads();
  o.to[thread()] = shared.load(0) + thread();
  if (kRight) __syncthreads();
  else __syncwarp();
  if (thread() == 0) shared.store(0, 1);
}

template <bool kRight> void order_a_warp(Params o) {
  const auto shared = shared_memory<float>();
  shared.store(thread(), 0);
  __syncwarp();
  shared.store(thread(), thread());
  if (kRight) __syncwarp();
  else __shfl_xor_sync(0xffffffff, 1, 1);  // comes together, but orders nothing
  o.to[thread() ^ 1] = shared.load(thread() ^ 1);
}

template <bool kRight> void read_what_is_written(Params o) {
  const auto shared = shared_memory<float>();
  if (kRight || thread() != 7) shared.store(thread(), thread());
  __syncthreads();
  o.to[thread()] = shared.load(thread());
}

template <bool kRight> void stay_inside(Params o) {
  shared_memory<float>().store(thread() + (kRight ? 0 : 1), 0);
  o.to[thread()] = thread();
}

template <bool kRight> void align_vectors(Params o) {
  shared_memory<float>().store_vector<2>(2 * thread() + (kRight ? 0 : 1), {});
  o.to[thread()] = thread();
}

// --- asynchronous copies ---------------------------------------------------------------------------------------------

enum class Copying { right, no_wait, wait_for_too_few, no_barrier, overwritten, uncommitted };

template <Copying kHow> void copy(Params o) {
  const auto shared = shared_memory<float>();
  for (int half = 0; half < 2; ++half) shared.store(half * 64 + thread(), 0);
  __syncthreads();
  for (int half = 0; half < 2; ++half) {
    copy_async<4>(shared + (half * 64 + thread()), o.from + half * 64 + thread(), true);
    if (kHow != Copying::uncommitted || half == 0) commit_copies();
  }
  if (kHow == Copying::overwritten) shared.store(thread(), 0);
  if (kHow == Copying::wait_for_too_few) wait_copies<1>();
  else if (kHow != Copying::no_wait) wait_copies<0>();
  if (kHow != Copying::no_barrier) __syncthreads();
  o.to[thread() ^ 1] = shared.load(64 + (thread() ^ 1)) - 64;
}

// --- barriers and warps ----------------------------------------------------------------------------------------------

template <bool kRight> void meet_at_one_line(Params o) {
  o.to[thread()] = thread();
  if (kRight || thread() < 32) __syncthreads();
  else __syncthreads();
}

// Who has exited is not waited for.
template <bool kRight> void exit_early(Params o) {
  o.to[thread()] = thread();
  if (thread() == 40) return;
  if (!kRight && thread() == 41) simt::self().block->barriers[1].sync(64, true, "barrier 1", simt::Site::current());
  __syncthreads();
}

template <bool kRight> void shuffle(Params o) {
  int sum = thread();
  if (!kRight && lane() == 3) return;
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
  const int above = __shfl_down_sync(0xffffffff, thread(), 1), first = __shfl_sync(0xffffffff, thread(), 0, 8);
  const bool right =
      sum == 496 + thread() / 32 * 1024 && above == thread() + (lane() < 31) && first == thread() / 8 * 8;
  o.to[thread()] = right ? thread() : -1;
}

template <bool kRight> void multiply_together(Params o) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (kRight || lane() < 16) mma<bf16>(d, a, b);
  else mma<f16>(d, a, b);
  o.to[thread()] = thread() + d[0];
}

// --- matrices --------------------------------------------------------------------------------------------------------

// A[m][k] = 2 m + k and B[k][n] = k - 2 n for one warp, multiplied from fragments that ldmatrix brings; B is kept as
// [n][k] or, transposed, as [k][n]. Thread 0 writes how many elements are right, every other its number.
template <class T, bool kTransposed, bool kRight, bool kHalf = false> void multiply(Params o) {
  constexpr int kK = kMmaK<T>, kPer = 16 / static_cast<int>(sizeof(T));
  const auto a_tile = shared_memory<T>(), b_tile = a_tile + 16 * kK;
  const auto wrong = shared_memory<float>(2048);
  for (int i = thread(); i < 16 * kK; i += 64) a_tile.store(i, from_float<T>(static_cast<float>(i / kK * 2 + i % kK)));
  for (int i = thread(); i < 8 * kK; i += 64) {
    const int k = kTransposed ? i / 8 : i % kK, n = kTransposed ? i % 8 : i / kK;
    b_tile.store(i, from_float<T>(static_cast<float>(k - 2 * n)));
  }
  __syncthreads();
  uint32_t a[4], b[4];
  const int row = lane() % 8, matrix = lane() / 8;
  load_matrices(
      a, a_tile + ((kRight ? matrix % 2 : matrix / 2) * 8 + row) * kK + (kRight ? matrix / 2 : matrix % 2) * kPer);
  if constexpr (kTransposed) load_matrices_transposed(b, b_tile + (matrix % 2 * 8 + row) * 8);
  else load_matrices(b, b_tile + row * kK + matrix % 2 * kPer);
  float d[4] = {1, 1, 1, 1};
  if constexpr (kHalf) mma_half<T>(d, {a[0], a[1]}, b[0]);
  else mma<T>(d, a, {b[0], b[1]});
  int errors = 0;
  for (int i = 0; i < 4; ++i) {
    const int m = lane() / 4 + i / 2 * 8, n = lane() % 4 * 2 + i % 2;
    float sum = 1;
    for (int k = 0; k < (kHalf ? 8 : kK); ++k) sum += static_cast<float>((2 * m + k) * (k - 2 * n));
    errors += d[i] != sum;
  }
  wrong.store(thread(), static_cast<float>(errors));
  __syncthreads();
  float all = 0;
  for (int i = 0; i < 64; ++i) all += wrong.load(i);
  o.to[thread()] = all + thread();
}

// 1 + 2^-10 is a TF32 number, and what is beyond that is cut off.
template <bool kRight> void truncate(Params o) {
  float d[4] = {};
  const float value = kRight ? 1 + 0x1p-10f + 0x1p-11f : 1 + 0x1p-9f;
  uint32_t a[4] = {}, b[2] = {};
  std::memcpy(&a[0], &value, 4);
  const float one = 1;
  std::memcpy(&b[0], &one, 4);
  mma<float>(d, a, b);
  o.to[thread()] = d[0] == 4 * (1 + 0x1p-10f) ? thread() : -1;
}

// --- what runs beside the threads ------------------------------------------------------------------------------------

enum class Beside { right, not_acquired, never_done };

struct Something {
  bool done = false;
  simt::Clock clock;
  simt::Waiting waiting;
};

// Thread 0 starts something that writes 64 numbers some time later, and all wait for it.
template <Beside kHow> void run_beside(Params o) {
  simt::Block& block = *simt::self().block;
  auto& something = block.cluster->kept<Something>();
  const auto shared = shared_memory<float>();
  if (thread() == 0) {
    simt::Agent agent = simt::start_agent("something");
    float* to = reinterpret_cast<float*>(block.memory->write(agent, 0, 256, 16, simt::Site::current()));
    if (kHow != Beside::never_done) {
      simt::later([=, &something]() mutable {
        for (int i = 0; i < 64; ++i) to[i] = static_cast<float>(i);
        agent.release(something.clock);
        simt::end_agent(agent);
        something.done = true;
        something.waiting.wake();
      });
    }
  }
  __syncthreads();
  if (!something.done) something.waiting.wait("something", simt::Site::current());
  if (kHow != Beside::not_acquired) simt::self().acquire(something.clock);
  o.to[thread()] = shared.load(thread());
}

// Two blocks that read each other's shared memory between two barriers of their cluster.
template <bool kRight> void read_a_peer(Params o) {
  simt::Block& block = *simt::self().block;
  simt::Cluster& cluster = *block.cluster;
  const auto sync = [&](simt::Site at = simt::Site::current()) {
    cluster.barrier.sync(cluster.live, true, "the cluster", at);
  };
  shared_memory<float>().store(thread(), 0);
  sync();
  shared_memory<float>().store(thread(), static_cast<float>(block.rank * 64 + thread()));
  if (kRight) sync();
  else __syncthreads();
  const Shared<float> peer(cluster.blocks[static_cast<size_t>(block.rank ^ 1)].get(), 0);
  const float value = peer.load(thread());
  if (block.rank == 1) o.to[thread()] = value;
  sync();
}

void read_beyond(Params o) { o.to[thread()] = o.from[2 * thread() + 2]; }

// --- all of them -----------------------------------------------------------------------------------------------------

struct Test {
  const char* name;
  KernelFunction kernel;
  const char* expected;  // what the error is named; "" where every thread writes its number, "wrong" where it does not
  int cluster = 1;
};

const Test kTests[] = {
    {"a write, a barrier, a read", write_then_read<true>, ""},
    {"a write, a read", write_then_read<false>, "race"},
    {"a read, a barrier, a write", read_then_write<true>, ""},
    {"a read, a write", read_then_write<false>, "race"},
    {"one write", write_twice<true>, ""},
    {"two writes", write_twice<false>, "race"},
    {"reads by all, a barrier, a write", read_by_all<true>, ""},
    {"reads by all, a warp's barrier, a write", read_by_all<false>, "race"},
    {"a warp's barrier", order_a_warp<true>, ""},
    {"a shuffle in place of a barrier", order_a_warp<false>, "race"},
    {"reads of what is written", read_what_is_written<true>, ""},
    {"a read of what nobody has written", read_what_is_written<false>, "poison"},
    {"an access inside", stay_inside<true>, ""},
    {"an access outside", stay_inside<false>, "out of bounds"},
    {"aligned vectors", align_vectors<true>, ""},
    {"a vector that is not aligned", align_vectors<false>, "misaligned"},
    {"copies that are waited for", copy<Copying::right>, ""},
    {"copies that are not waited for", copy<Copying::no_wait>, "race"},
    {"copies of which the first are waited for", copy<Copying::wait_for_too_few>, "race"},
    {"copies that are waited for, without a barrier", copy<Copying::no_barrier>, "race"},
    {"a copy's place is overwritten", copy<Copying::overwritten>, "race"},
    {"copies that are not committed", copy<Copying::uncommitted>, "race"},
    {"one barrier for all", meet_at_one_line<true>, ""},
    {"two barriers for one", meet_at_one_line<false>, "divergence"},
    {"a thread exits before a barrier", exit_early<true>, ""},
    {"a barrier that not all reach", exit_early<false>, "deadlock"},
    {"shuffles", shuffle<true>, ""},
    {"a shuffle without one lane", shuffle<false>, "divergence"},
    {"an mma of a warp", multiply_together<true>, ""},
    {"two mma in one warp", multiply_together<false>, "divergence"},
    {"fragments, bf16", multiply<bf16, false, true>, ""},
    {"fragments, f16, transposed", multiply<f16, true, true>, ""},
    {"fragments, TF32", multiply<float, false, true>, ""},
    {"fragments of half as many k", multiply<bf16, false, true, true>, ""},
    {"fragments of a in a wrong order", multiply<bf16, false, false>, "wrong"},
    {"TF32 cuts off", truncate<true>, ""},
    {"TF32 keeps 10 bits", truncate<false>, "wrong"},
    {"an asynchronous agent", run_beside<Beside::right>, ""},
    {"an asynchronous agent whose clock is not acquired", run_beside<Beside::not_acquired>, "race"},
    {"an asynchronous agent that is never done", run_beside<Beside::never_done>, "deadlock"},
    {"a cluster", read_a_peer<true>, "", 2},
    {"a cluster without its barrier", read_a_peer<false>, "race", 2},
};

constexpr int kThreads = 64;

std::string outcome(const Test& test) {
  std::vector<float> from(2 * kThreads), to(kThreads, -1);
  for (int i = 0; i < 2 * kThreads; ++i) from[static_cast<size_t>(i)] = static_cast<float>(i);
  const cnnkern::ConvProblem problem;
  const std::string name = test.name;
  const bool large = name.find("side") == name.npos;
  const Grid grid{
      .x = test.cluster, .threads = kThreads, .shared_bytes = large ? 4096 : 4 * kThreads, .cluster = test.cluster};
  try {
    launch(test.kernel, grid, Params{from.data(), to.data()}, Call{problem, name});
  } catch (const simt::Error& error) {
    std::printf("    %s\n", error.what());
    return simt::kFaultNames[static_cast<int>(error.fault)];
  }
  for (int i = 0; i < kThreads; ++i) {
    if (to[static_cast<size_t>(i)] != static_cast<float>(i)) return "wrong";
  }
  return "";
}

}  // namespace

// With an argument: a kernel that reads beyond an operand, which AddressSanitizer has to see on a fiber's stack.
int main(int argc, char**) {
  if (argc > 1) return outcome({"a read beyond an operand", read_beyond, ""}) != "";
  int failures = 0;
  for (const Test& test : kTests) {
    for (const uint64_t seed : {0, 1, 2, 3}) {
      simt::set_seed(seed);
      const std::string found = outcome(test);
      if (found == test.expected) continue;
      ++failures;
      std::printf("FAILED: %s, seed %d: '%s', not '%s'\n", test.name, static_cast<int>(seed), found.c_str(),
                  test.expected);
    }
  }
  std::printf("%zu tests, %d failures\n", std::size(kTests), failures);
  return failures ? 1 : 0;
}
