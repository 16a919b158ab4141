// The text form of a ConvProblem, and what makes one valid.
#include "conv_problem.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <vector>

namespace cnnkern {
namespace {

constexpr std::string_view kLayoutNames[] = {"nhwc", "nchw"};
constexpr std::string_view kFilterNames[] = {"krsc", "kcrs"};

// --- printing -------------------------------------------------------------------------------------------------------

std::string joined(std::initializer_list<int64_t> values) {
  std::string text;
  for (const int64_t value : values) {
    if (!text.empty()) text += 'x';
    text += std::to_string(value);
  }
  return text;
}

std::string pair_text(int64_t first, int64_t second) {
  return first == second ? joined({first}) : joined({first, second});
}

std::string padding_text(const ConvProblem& p) {
  if (p.pad_top == p.pad_bottom && p.pad_left == p.pad_right) return pair_text(p.pad_top, p.pad_left);
  return joined({p.pad_top, p.pad_left, p.pad_bottom, p.pad_right});
}

// The fewest digits that read back as the same float.
std::string shortest(float value) {
  char text[32];
  for (int digits = 1; digits <= 9; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(value));
    if (std::strtof(text, nullptr) == value) break;
  }
  return text;
}

// --- parsing --------------------------------------------------------------------------------------------------------

[[noreturn]] void fail(std::string_view token, std::string_view reason) {
  throw std::invalid_argument("problem token '" + std::string(token) + "': " + std::string(reason));
}

// A '-' that a letter follows separates tokens; any other belongs to a number ("-act:elu:1e-05").
std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> tokens;
  size_t begin = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    const bool letter = i + 1 < text.size() && text[i + 1] >= 'a' && text[i + 1] <= 'z';
    if (text[i] != '-' || !letter) continue;
    tokens.push_back(text.substr(begin, i - begin));
    begin = i + 1;
  }
  tokens.push_back(text.substr(begin));
  return tokens;
}

constexpr int64_t kLargest = int64_t{1} << 40;  // so that sums of sizes stay far from overflow

// Reads a whole number off the front of `rest`.
int64_t take_number(std::string_view token, std::string_view& rest) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (error != std::errc{} || value < 0 || value > kLargest) fail(token, "a whole number is missing or too large");
  rest.remove_prefix(static_cast<size_t>(end - rest.data()));
  return value;
}

// "n1c64h56w56" with the letters "nchw".
void read_sizes(std::string_view token, std::string_view letters, std::initializer_list<int64_t*> values) {
  std::string_view rest = token;
  auto value = values.begin();
  for (const char letter : letters) {
    if (rest.empty() || rest[0] != letter) fail(token, "expected sizes for the letters " + std::string(letters));
    rest.remove_prefix(1);
    **value++ = take_number(token, rest);
  }
  if (!rest.empty()) fail(token, "unexpected '" + std::string(rest) + "'");
}

// "1x2" read into `values`; returns how many there were.
size_t read_list(std::string_view token, std::string_view rest, std::span<int64_t> values) {
  for (size_t count = 0; count < values.size();) {
    values[count++] = take_number(token, rest);
    if (rest.empty()) return count;
    if (rest[0] != 'x') break;
    rest.remove_prefix(1);
  }
  fail(token, "expected at most " + std::to_string(values.size()) + " whole numbers joined by x");
}

void read_pair(std::string_view token, std::string_view rest, int64_t& first, int64_t& second) {
  std::array<int64_t, 2> values;
  const size_t count = read_list(token, rest, values);
  first = values[0];
  second = values[count - 1];
}

void read_padding(std::string_view token, std::string_view rest, ConvProblem& problem) {
  std::array<int64_t, 4> values;
  const size_t count = read_list(token, rest, values);
  if (count == 3) fail(token, "padding is 1, 2 or 4 numbers: all; vertical x horizontal; top x left x bottom x right");
  problem.pad_top = values[0];
  problem.pad_left = count == 1 ? values[0] : values[1];
  problem.pad_bottom = count == 4 ? values[2] : problem.pad_top;
  problem.pad_right = count == 4 ? values[3] : problem.pad_left;
}

int64_t read_whole(std::string_view token, std::string_view rest) {
  std::array<int64_t, 1> value;
  read_list(token, rest, value);
  return value[0];
}

template <class Enum>
Enum read_name(std::string_view token, std::string_view name, std::span<const std::string_view> names) {
  std::string known;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
    known += (i ? ", " : "") + std::string(names[i]);
  }
  fail(token, "expected one of " + known);
}

template <class Half>  // Prologue or Epilogue
void read_activation(std::string_view token, std::string_view rest, Half& half) {
  const size_t colon = rest.find(':');
  half.activation = read_name<Activation>(token, rest.substr(0, colon), kActivationNames);
  if (colon == rest.npos) return;
  const std::string_view alpha = rest.substr(colon + 1);
  const auto [end, error] = std::from_chars(alpha.data(), alpha.data() + alpha.size(), half.alpha);
  if (error != std::errc{} || end != alpha.data() + alpha.size() || !std::isfinite(half.alpha)) {
    fail(token, "the activation's alpha is no number");
  }
}

// Each optional token: what it starts with, and how the rest of it is read. A name that is the start of another comes
// after it, and a flag has nothing after its name.
struct Field {
  std::string_view name;
  void (*read)(std::string_view token, std::string_view rest, ConvProblem& problem);
};

bool read_flag(std::string_view token, std::string_view rest) {
  if (!rest.empty()) fail(token, "unknown");
  return true;
}

using Text = std::string_view;
constexpr Field kFields[] = {
    {"scale", [](Text t, Text rest, ConvProblem& p) { p.epilogue.scale = read_flag(t, rest); }},
    {"shift", [](Text t, Text rest, ConvProblem& p) { p.epilogue.shift = read_flag(t, rest); }},
    {"residual", [](Text t, Text rest, ConvProblem& p) { p.epilogue.residual = read_flag(t, rest); }},
    {"act:", [](Text t, Text rest, ConvProblem& p) { read_activation(t, rest, p.epilogue); }},
    {"xscale", [](Text t, Text rest, ConvProblem& p) { p.prologue.scale = read_flag(t, rest); }},
    {"xshift", [](Text t, Text rest, ConvProblem& p) { p.prologue.shift = read_flag(t, rest); }},
    {"xact:", [](Text t, Text rest, ConvProblem& p) { read_activation(t, rest, p.prologue); }},
    {"x:", [](Text t, Text rest, ConvProblem& p) { p.x_layout = read_name<Layout>(t, rest, kLayoutNames); }},
    {"y:", [](Text t, Text rest, ConvProblem& p) { p.y_layout = read_name<Layout>(t, rest, kLayoutNames); }},
    {"w:", [](Text t, Text rest, ConvProblem& p) { p.w_layout = read_name<WeightLayout>(t, rest, kFilterNames); }},
    {"xs", [](Text t, Text rest, ConvProblem& p) { p.x_pixel_stride = read_whole(t, rest); }},
    {"ys", [](Text t, Text rest, ConvProblem& p) { p.y_pixel_stride = read_whole(t, rest); }},
    {"u", [](Text t, Text rest, ConvProblem& p) { read_pair(t, rest, p.stride_h, p.stride_w); }},
    {"p", [](Text t, Text rest, ConvProblem& p) { read_padding(t, rest, p); }},
    {"l", [](Text t, Text rest, ConvProblem& p) { read_pair(t, rest, p.dilation_h, p.dilation_w); }},
    {"g", [](Text t, Text rest, ConvProblem& p) { p.groups = read_whole(t, rest); }},
};

void read_field(std::string_view token, ConvProblem& problem, unsigned& seen) {
  for (size_t i = 0; i < std::size(kFields); ++i) {
    if (!token.starts_with(kFields[i].name)) continue;
    if (seen & (1u << i)) fail(token, "given twice");
    seen |= 1u << i;
    return kFields[i].read(token, token.substr(kFields[i].name.size()), problem);
  }
  fail(token, "unknown");
}

std::string activation_text(std::string_view prefix, Activation activation, float alpha) {
  if (activation == Activation::none) return {};
  std::string text(prefix);
  text += kActivationNames[static_cast<int>(activation)];
  return alpha != 0 ? text + ":" + shortest(alpha) : text;
}

// murmur3's finaliser over a running value.
uint64_t mix(uint64_t seed, uint64_t value) {
  uint64_t x = (seed ^ value) * 0xff51afd7ed558ccdULL;
  return x ^ (x >> 32);
}

}  // namespace

std::string ConvProblem::why_invalid() const {
  if (n < 0 || c < 0 || h < 0 || w < 0) return "x has a negative size";
  if (h < 1 || w < 1) return "x has no rows or no columns";
  if (k < 1 || r < 1 || s < 1) return "w has an empty filter or no filters";
  if (stride_h < 1 || stride_w < 1) return "the stride is not positive";
  if (dilation_h < 1 || dilation_w < 1) return "the dilation is not positive";
  if (pad_top < 0 || pad_left < 0 || pad_bottom < 0 || pad_right < 0) return "the padding is negative";
  if (groups < 1) return "groups is not positive";
  if (c % groups || k % groups) {
    return "groups " + std::to_string(groups) + " does not divide both c " + std::to_string(c) + " and k " +
           std::to_string(k);
  }
  const int64_t padded_h = h + pad_top + pad_bottom, padded_w = w + pad_left + pad_right;
  const int64_t extent_h = dilation_h * (r - 1) + 1, extent_w = dilation_w * (s - 1) + 1;
  if (extent_h > padded_h || extent_w > padded_w) {
    return "the filter's extent " + joined({extent_h, extent_w}) + " is larger than the padded input " +
           joined({padded_h, padded_w});
  }
  if (x_pixel_stride && x_pixel_stride < c) return "the pixel stride of x is less than c";
  if (y_pixel_stride && y_pixel_stride < k) return "the pixel stride of y is less than k";
  return {};
}

std::string ConvProblem::to_string() const {
  const auto number = [](int64_t value) { return std::to_string(value); };
  std::string text = std::string(kDirectionNames[static_cast<int>(direction)]) + "-" +
                     std::string(kDTypeNames[static_cast<int>(dtype)]) + "-n" + number(n) + "c" + number(c) + "h" +
                     number(h) + "w" + number(w) + "-k" + number(k) + "r" + number(r) + "s" + number(s);
  if (strided()) text += "-u" + pair_text(stride_h, stride_w);
  if (padded()) text += "-p" + padding_text(*this);
  if (dilated()) text += "-l" + pair_text(dilation_h, dilation_w);
  if (groups != 1) text += "-g" + number(groups);
  if (x_layout != Layout::nhwc) text += "-x:" + std::string(kLayoutNames[static_cast<int>(x_layout)]);
  if (w_layout != WeightLayout::krsc) text += "-w:" + std::string(kFilterNames[static_cast<int>(w_layout)]);
  if (y_layout != Layout::nhwc) text += "-y:" + std::string(kLayoutNames[static_cast<int>(y_layout)]);
  if (x_stride() != c) text += "-xs" + number(x_pixel_stride);
  if (y_stride() != k) text += "-ys" + number(y_pixel_stride);
  if (epilogue.scale) text += "-scale";
  if (epilogue.shift) text += "-shift";
  if (epilogue.residual) text += "-residual";
  text += activation_text("-act:", epilogue.activation, epilogue.alpha);
  if (prologue.scale) text += "-xscale";
  if (prologue.shift) text += "-xshift";
  text += activation_text("-xact:", prologue.activation, prologue.alpha);
  return text;
}

ConvProblem ConvProblem::parse(std::string_view text) {
  const std::vector<std::string_view> tokens = split(text);
  if (tokens.size() < 4) fail(text, "expected at least direction-dtype-n1c1h1w1-k1r1s1");
  ConvProblem problem;
  problem.direction = read_name<Direction>(tokens[0], tokens[0], kDirectionNames);
  problem.dtype = read_name<DType>(tokens[1], tokens[1], kDTypeNames);
  read_sizes(tokens[2], "nchw", {&problem.n, &problem.c, &problem.h, &problem.w});
  read_sizes(tokens[3], "krs", {&problem.k, &problem.r, &problem.s});
  unsigned seen = 0;
  for (size_t i = 4; i < tokens.size(); ++i) read_field(tokens[i], problem, seen);
  if (problem.x_pixel_stride == problem.c) problem.x_pixel_stride = 0;
  if (problem.y_pixel_stride == problem.k) problem.y_pixel_stride = 0;
  if (const std::string reason = problem.why_invalid(); !reason.empty()) fail(text, reason);
  return problem;
}

size_t ConvProblemHash::operator()(const ConvProblem& p) const {
  uint64_t hash = 0;
  for (const int64_t value :
       {p.n, p.c, p.h, p.w, p.k, p.r, p.s, p.stride_h, p.stride_w, p.pad_top, p.pad_left, p.pad_bottom, p.pad_right,
        p.dilation_h, p.dilation_w, p.groups, p.x_pixel_stride, p.y_pixel_stride}) {
    hash = mix(hash, static_cast<uint64_t>(value));
  }
  const Epilogue& e = p.epilogue;
  const Prologue& o = p.prologue;
  uint64_t choices = 0;
  for (const int value : {static_cast<int>(e.activation), static_cast<int>(e.scale), static_cast<int>(e.shift),
                          static_cast<int>(e.residual), static_cast<int>(p.direction), static_cast<int>(p.dtype),
                          static_cast<int>(p.x_layout), static_cast<int>(p.y_layout), static_cast<int>(p.w_layout),
                          static_cast<int>(o.activation), static_cast<int>(o.scale), static_cast<int>(o.shift)}) {
    choices = choices * 16 + static_cast<uint64_t>(value);
  }
  const std::hash<float> of_float;
  return mix(mix(mix(hash, choices), of_float(e.alpha)), of_float(o.alpha));
}

}  // namespace cnnkern
