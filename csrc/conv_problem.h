// ConvProblem: everything a kernel is chosen by, as one plain record.
//
// Output size, here and nowhere else in C++:
//   p = (h + pad_top + pad_bottom - dilation_h * (r - 1) - 1) / stride_h + 1
// (Dumoulin and Visin, "A guide to convolution arithmetic", arXiv 1603.07285, relationship 14).
//
// A problem prints as one token and parses back to itself:
//   fprop-f32-n1c64h56w56-k64r3s3-u2-p1x1x1x1-l1-g1 ...
// Fields that have their default value are left out, so the string is canonical:
//   -uSHxSW  stride              (default 1)        -pTxLxBxR  padding top, left, bottom, right (0)
//   -lDHxDW  dilation            (1)                -gG        groups (1)
//   -x:nchw -w:kcrs -y:nchw      layouts (nhwc, krsc, nhwc)
//   -xsN -ysN                    pixel stride of x, y in elements (dense)
//   -scale -shift -residual      epilogue operands  -act:NAME[:ALPHA]   epilogue activation (none)
//   -xscale -xshift              prologue operands  -xact:NAME[:ALPHA]  prologue activation (none)
// Equal numbers are written once: u2 is u2x2, p1 is p1x1x1x1, p1x2 is p1x2x1x2.
// cnnkern/problem.py reads and writes the same grammar; a test holds the two together.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "epilogue.h"
#include "prologue.h"

namespace cnnkern {

enum class Direction : int8_t { fprop, dgrad, wgrad };
enum class DType : int8_t { f32, f64, bf16, f16 };
enum class Layout : int8_t { nhwc, nchw };        // of x and y
enum class WeightLayout : int8_t { krsc, kcrs };  // of w

constexpr std::string_view kDirectionNames[] = {"fprop", "dgrad", "wgrad"};
constexpr std::string_view kDTypeNames[] = {"f32", "f64", "bf16", "f16"};
constexpr int kDTypeSizes[] = {4, 8, 2, 2};

constexpr int64_t output_size(int64_t size, int64_t filter, int64_t pad_before, int64_t pad_after, int64_t stride,
                              int64_t dilation) {
  return (size + pad_before + pad_after - dilation * (filter - 1) - 1) / stride + 1;
}

struct ConvProblem {
  int64_t n = 1, c = 1, h = 1, w = 1;  // x: n images of h x w pixels, c maps
  int64_t k = 1, r = 1, s = 1;         // w: k filters of r x s, c / groups maps
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t groups = 1;
  int64_t x_pixel_stride = 0, y_pixel_stride = 0;  // elements from pixel to pixel; 0: dense
  Prologue prologue;
  Epilogue epilogue;
  Direction direction = Direction::fprop;
  DType dtype = DType::f32;
  Layout x_layout = Layout::nhwc, y_layout = Layout::nhwc;
  WeightLayout w_layout = WeightLayout::krsc;

  int64_t p() const { return output_size(h, r, pad_top, pad_bottom, stride_h, dilation_h); }
  int64_t q() const { return output_size(w, s, pad_left, pad_right, stride_w, dilation_w); }
  int64_t c_per_group() const { return c / groups; }
  int64_t k_per_group() const { return k / groups; }
  int64_t x_stride() const { return x_pixel_stride ? x_pixel_stride : c; }
  int64_t y_stride() const { return y_pixel_stride ? y_pixel_stride : k; }
  bool padded() const { return pad_top || pad_left || pad_bottom || pad_right; }
  bool strided() const { return stride_h != 1 || stride_w != 1; }
  bool dilated() const { return dilation_h != 1 || dilation_w != 1; }
  bool depthwise() const { return groups == c && groups == k; }
  bool pointwise() const { return r == 1 && s == 1 && !padded(); }
  double flops() const { return 2.0 * n * p() * q() * k * r * s * c_per_group(); }

  bool operator==(const ConvProblem&) const = default;
  // Empty, or a sentence that says which sizes make no convolution (an x without images or maps is one).
  std::string why_invalid() const;
  std::string to_string() const;
  // Throws std::invalid_argument that names the token at fault.
  static ConvProblem parse(std::string_view text);
};

struct ConvProblemHash { size_t operator()(const ConvProblem& problem) const; };

}  // namespace cnnkern
