// Problems as keys of a table: equality, hash and string agree. The grammar of strings is tested from Python.
#include <algorithm>
#include <functional>
#include <set>

#include "check.h"
#include "conv_problem.h"

using cnnkern::Activation;
using cnnkern::ConvProblem;
using cnnkern::ConvProblemHash;

namespace {

// A valid problem that gives every field another value than `plain` does, one change at a time.
const ConvProblem plain = ConvProblem::parse("fprop-f32-n2c8h9w11-k16r3s3");
const std::function<void(ConvProblem&)> changes[] = {
    [](ConvProblem& p) { p.n = 3; },
    [](ConvProblem& p) { p.c = 4; },
    [](ConvProblem& p) { p.h = 10; },
    [](ConvProblem& p) { p.w = 10; },
    [](ConvProblem& p) { p.k = 24; },
    [](ConvProblem& p) { p.r = 2; },
    [](ConvProblem& p) { p.s = 2; },
    [](ConvProblem& p) { p.stride_h = 2; },
    [](ConvProblem& p) { p.stride_w = 2; },
    [](ConvProblem& p) { p.pad_top = 1; },
    [](ConvProblem& p) { p.pad_left = 1; },
    [](ConvProblem& p) { p.pad_bottom = 1; },
    [](ConvProblem& p) { p.pad_right = 1; },
    [](ConvProblem& p) { p.dilation_h = 2; },
    [](ConvProblem& p) { p.dilation_w = 2; },
    [](ConvProblem& p) { p.groups = 2; },
    [](ConvProblem& p) { p.x_pixel_stride = 9; },
    [](ConvProblem& p) { p.y_pixel_stride = 17; },
    [](ConvProblem& p) { p.epilogue.scale = true; },
    [](ConvProblem& p) { p.epilogue.shift = true; },
    [](ConvProblem& p) { p.epilogue.residual = true; },
    [](ConvProblem& p) { p.epilogue.activation = Activation::relu; },
    [](ConvProblem& p) { p.epilogue.activation = Activation::elu, p.epilogue.alpha = 0.5f; },
    [](ConvProblem& p) { p.epilogue.activation = Activation::elu, p.epilogue.alpha = 0.25f; },
    [](ConvProblem& p) { p.prologue.scale = true; },
    [](ConvProblem& p) { p.prologue.shift = true; },
    [](ConvProblem& p) { p.prologue.activation = Activation::relu; },
    [](ConvProblem& p) { p.prologue.activation = Activation::elu, p.prologue.alpha = 0.5f; },
    [](ConvProblem& p) { p.direction = cnnkern::Direction::dgrad; },
    [](ConvProblem& p) { p.direction = cnnkern::Direction::wgrad; },
    [](ConvProblem& p) { p.dtype = cnnkern::DType::bf16; },
    [](ConvProblem& p) { p.x_layout = cnnkern::Layout::nchw; },
    [](ConvProblem& p) { p.y_layout = cnnkern::Layout::nchw; },
    [](ConvProblem& p) { p.w_layout = cnnkern::WeightLayout::kcrs; },
};

// The outputs of an axis counted one by one, instead of by the formula.
int64_t windows(int64_t size, int64_t filter, int64_t before, int64_t after, int64_t stride, int64_t dilation) {
  int64_t count = 0;
  for (int64_t at = -before; at + dilation * (filter - 1) < size + after; at += stride) ++count;
  return count;
}

}  // namespace

TEST(every_field_tells_problems_apart) {
  std::set<std::string> strings{plain.to_string()};
  std::set<size_t> hashes{ConvProblemHash()(plain)};
  for (const auto& change : changes) {
    ConvProblem problem = plain;
    change(problem);
    CHECK_EQUAL(problem.why_invalid(), "");
    CHECK(!(problem == plain));
    CHECK(strings.insert(problem.to_string()).second);
    CHECK(hashes.insert(ConvProblemHash()(problem)).second);
    const ConvProblem again = ConvProblem::parse(problem.to_string());
    CHECK(again == problem);
    CHECK_EQUAL(ConvProblemHash()(again), ConvProblemHash()(problem));
  }
}

TEST(the_output_size_is_the_number_of_windows) {
  for (int64_t size = 1; size < 12; ++size)
    for (int64_t filter = 1; filter < 5; ++filter)
      for (int64_t pad = 0; pad < 3; ++pad)
        for (int64_t stride = 1; stride < 4; ++stride)
          for (int64_t dilation = 1; dilation < 3; ++dilation) {
            if (dilation * (filter - 1) + 1 > size + pad + 1) continue;
            CHECK_EQUAL(cnnkern::output_size(size, filter, pad, 1, stride, dilation),
                        windows(size, filter, pad, 1, stride, dilation));
          }
}

TEST(what_is_no_convolution_is_refused_with_its_reason) {
  const std::pair<std::function<void(ConvProblem&)>, const char*> wrong[] = {
      {[](ConvProblem& p) { p.n = -1; }, "negative size"},
      {[](ConvProblem& p) { p.k = 0; }, "no filters"},
      {[](ConvProblem& p) { p.stride_w = 0; }, "stride is not positive"},
      {[](ConvProblem& p) { p.dilation_h = 0; }, "dilation is not positive"},
      {[](ConvProblem& p) { p.pad_right = -1; }, "padding is negative"},
      {[](ConvProblem& p) { p.groups = 3; }, "groups 3 does not divide"},
      {[](ConvProblem& p) { p.h = 2; }, "larger than the padded input"},
      {[](ConvProblem& p) { p.x_pixel_stride = 7; }, "pixel stride of x"},
      {[](ConvProblem& p) { p.y_pixel_stride = 15; }, "pixel stride of y"},
  };
  for (const auto& [change, reason] : wrong) {
    ConvProblem problem = plain;
    change(problem);
    CHECK(problem.why_invalid().find(reason) != std::string::npos);
    const std::string text = problem.to_string();
    CHECK(cnnkern::testing::thrown<std::invalid_argument>([&] { ConvProblem::parse(text); }) != "nothing");
  }
  ConvProblem empty = plain;
  empty.n = 0;
  CHECK_EQUAL(empty.why_invalid(), "");
}
