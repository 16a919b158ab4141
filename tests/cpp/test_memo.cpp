// Which kernel runs a problem: asked once, kept, forgotten when there are too many.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "cpu/kernel_list.h"
#include "cpu/memo.h"

using namespace cnnkern;
using namespace cnnkern::cpu;

namespace {

ConvProblem problem_of_width(int64_t width) {
  ConvProblem problem;
  problem.w = width;
  return problem;
}

// A chooser for as long as it lives; the memo is empty before and after.
struct WithChooser {
  explicit WithChooser(Chooser chooser) { set_chooser(std::move(chooser)); }
  ~WithChooser() { set_chooser(nullptr); }
};

const std::string& reference_name() { return reference_kernel(Direction::fprop, DType::f32).name; }

}  // namespace

TEST(a_problem_is_asked_for_once_per_flags) {
  int asked = 0;
  const WithChooser chooser([&](const std::string&, int64_t) { return ++asked, reference_name(); });
  for (int round = 0; round < 3; ++round) {
    CHECK_EQUAL(chosen_kernel(problem_of_width(5), 0).name, reference_name());
    chosen_kernel(problem_of_width(5), kStrict);
    chosen_kernel(problem_of_width(6), 0);
  }
  CHECK_EQUAL(asked, 3);
  CHECK_EQUAL(memo_entries().size(), 3u);
  clear_memo();
  CHECK(memo_entries().empty());
  chosen_kernel(problem_of_width(5), 0);
  CHECK_EQUAL(asked, 4);
}

TEST(without_a_chooser_the_first_willing_kernel_is_taken) {
  const ConvProblem problem = ConvProblem::parse("fprop-f32-n1c64h8w8-k64r1s1");
  const Kernel& kernel = chosen_kernel(problem, 0);
  CHECK_EQUAL(why_not(kernel, problem), "");
  CHECK(kernel.name != reference_name());
  clear_memo();
}

TEST(a_choice_that_fails_is_not_kept) {
  std::string answer = "cpu_none_fprop_f32_nhwc_any__generic";
  const WithChooser chooser([&](const std::string&, int64_t) { return answer; });
  const auto ask = [] { chosen_kernel(problem_of_width(7), 0); };
  CHECK(testing::thrown<std::invalid_argument>(ask).find(answer) != std::string::npos);
  answer = reference_kernel(Direction::fprop, DType::f64).name;
  CHECK(testing::thrown<std::runtime_error>(ask).find("another direction or dtype") != std::string::npos);
  CHECK(memo_entries().empty());
  answer = reference_name();
  CHECK_EQUAL(testing::thrown<std::exception>(ask), "nothing");
}

TEST(the_memo_is_bounded) {
  constexpr int64_t kBound = 1 << 16;
  int64_t asked = 0;
  const WithChooser chooser([&](const std::string&, int64_t) { return ++asked, reference_name(); });
  for (int64_t width = 1; width <= kBound; ++width) chosen_kernel(problem_of_width(width), 0);
  CHECK_EQUAL(memo_entries().size(), static_cast<size_t>(kBound));
  chosen_kernel(problem_of_width(kBound + 1), 0);
  CHECK_EQUAL(memo_entries().size(), 1u);
  chosen_kernel(problem_of_width(1), 0);
  CHECK_EQUAL(asked, kBound + 2);
}

TEST(threads_that_ask_at_once_agree) {
  constexpr int64_t kProblems = 40;
  std::atomic<int64_t> asked = 0;
  const WithChooser chooser([&](const std::string&, int64_t) {
    ++asked;
    std::this_thread::yield();
    return reference_name();
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int64_t i = 0; i < 10 * kProblems; ++i) {
        CHECK_EQUAL(chosen_kernel(problem_of_width(1 + (i * (2 * t + 1)) % kProblems), 0).name, reference_name());
        if (i % 100 == 99) memo_entries();
        if (t == 0 && i == 5 * kProblems) clear_memo();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(memo_entries().size(), static_cast<size_t>(kProblems));
  CHECK(asked >= kProblems && asked <= 2 * 4 * kProblems);
}
