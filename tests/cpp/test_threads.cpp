// parallel_for and scratch memory, on as many threads as the pool has.
#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "cpu/threads.h"

using cnnkern::cpu::parallel_for;
using cnnkern::cpu::scratch;
using cnnkern::cpu::Scratch;
using cnnkern::cpu::thread_count;

TEST(every_index_comes_once_in_ranges_of_the_grain) {
  for (const int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
    for (const int64_t grain : {0, 1, 2, 5, 64, 5000}) {
      const std::unique_ptr<std::atomic<int>[]> times(new std::atomic<int>[count]());
      std::atomic<int64_t> ranges = 0;
      parallel_for(count, grain, [&](int64_t begin, int64_t end) {
        ++ranges;
        CHECK(end - begin >= std::min(grain, count));
        for (int64_t i = begin; i < end; ++i) ++times[i];
      });
      for (int64_t i = 0; i < count; ++i) CHECK_EQUAL(times[i].load(), 1);
      CHECK(ranges <= thread_count());
    }
  }
}

TEST(what_a_body_wrote_is_seen_after_the_region) {
  std::vector<int64_t> squares(10'000);
  for (int round = 0; round < 20; ++round) {
    std::fill(squares.begin(), squares.end(), -1);
    parallel_for(std::ssize(squares), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) squares[i] = i * i;
    });
    for (int64_t i = 0; i < std::ssize(squares); ++i) CHECK_EQUAL(squares[i], i * i);
  }
}

TEST(a_nested_region_runs_on_its_own_thread) {
  constexpr int64_t kOuter = 8, kInner = 100;
  std::atomic<int64_t> sum = 0;
  parallel_for(kOuter, 1, [&](int64_t begin, int64_t end) {
    const bool shared = end - begin < kOuter;
    if (shared) CHECK_EQUAL(thread_count(), 1);
    const std::thread::id outer = std::this_thread::get_id();
    for (int64_t i = begin; i < end; ++i) {
      parallel_for(kInner, 1, [&](int64_t inner_begin, int64_t inner_end) {
        if (shared) CHECK(std::this_thread::get_id() == outer);
        sum += inner_end - inner_begin;
      });
    }
  });
  CHECK_EQUAL(sum.load(), kOuter * kInner);
}

TEST(work_that_is_kept_on_its_thread_is_one_range) {
  const int64_t before = thread_count();
  int64_t ranges = 0;
  {
    const cnnkern::cpu::OnThisThread alone;
    CHECK_EQUAL(thread_count(), 1);
    parallel_for(1000, 1, [&](int64_t, int64_t) { ++ranges; });
  }
  CHECK_EQUAL(ranges, 1);
  CHECK_EQUAL(thread_count(), before);
}

TEST(an_exception_comes_out_and_the_pool_lives_on) {
  for (const int64_t count : {1, 64}) {
    for (const int64_t thrower : {int64_t{0}, count - 1}) {
      const std::string message = cnnkern::testing::thrown<std::runtime_error>([&] {
        parallel_for(count, 1, [&](int64_t begin, int64_t end) {
          if (begin <= thrower && thrower < end) throw std::runtime_error("index " + std::to_string(thrower));
        });
      });
      CHECK_EQUAL(message, "index " + std::to_string(thrower));
    }
  }
  const std::string message = cnnkern::testing::thrown<std::runtime_error>(
      [] { parallel_for(64, 1, [](int64_t, int64_t) { throw std::runtime_error("all of them"); }); });
  CHECK_EQUAL(message, "all of them");
  std::atomic<int64_t> sum = 0;
  parallel_for(64, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  CHECK_EQUAL(sum.load(), 64);
}

TEST(scratch_memory_is_kept_by_slot_and_thread) {
  int* const first = scratch<int>(Scratch::packed, 100);
  CHECK(reinterpret_cast<uintptr_t>(first) % 64 == 0);
  CHECK(scratch<int>(Scratch::packed, 50) == first);
  CHECK(scratch<int>(Scratch::sums, 100) != first);
  int* const grown = scratch<int>(Scratch::packed, 1 << 20);
  std::memset(grown, 1, sizeof(int) << 20);
  std::thread([&] { CHECK(scratch<int>(Scratch::packed, 1 << 20) != grown); }).join();
}
