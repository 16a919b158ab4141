// A tensor on the device, for the driver: what is around it is watched.
#pragma once

#include <primitives/device.h>
#include <primitives/numeric.h>

#include <cstddef>
#include <vector>

namespace cnnkern::cuda {

inline double read_element(const std::byte* from, DType dtype) {
  if (dtype == DType::f32) return *reinterpret_cast<const float*>(from);
  if (dtype == DType::bf16) return __bfloat162float(*reinterpret_cast<const bf16*>(from));
  return __half2float(*reinterpret_cast<const f16*>(from));
}
inline void write_element(std::byte* to, double v, DType dtype) {
  if (dtype == DType::f32) *reinterpret_cast<float*>(to) = static_cast<float>(v);
  else if (dtype == DType::bf16) *reinterpret_cast<bf16*>(to) = __float2bfloat16_rn(static_cast<float>(v));
  else *reinterpret_cast<f16*>(to) = __float2half_rn(static_cast<float>(v));
}
inline double rounded(double v, DType dtype) {
  std::byte bytes[4];
  write_element(bytes, v, dtype);
  return read_element(bytes, dtype);
}

// Rows of `row` elements, `stride` apart, on the device, in the midst of memory that is not to be touched. What nobody
// has put there is NaN.
class Buffer {
 public:
  Buffer(DType dtype, int64_t rows, int64_t row, int64_t stride, int64_t offset)
      : dtype_(dtype),
        row_(row),
        stride_(stride),
        begin_(kZone + static_cast<size_t>(offset) * size()),
        end_(begin_ + (rows ? static_cast<size_t>((rows - 1) * stride + row) * size() : 0)),
        host_(end_ + kZone, std::byte{0xff}) {
    device_ = static_cast<std::byte*>(allocate(host_.size()));
  }
  ~Buffer() {
    allow(device_, host_.size());
    release(device_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void fill(const std::vector<double>& values) {
    for (size_t i = 0; i < values.size(); ++i) write_element(&host_[place(static_cast<int64_t>(i))], values[i], dtype_);
  }
  // To the device; returns where the first element is there.
  void* send() {
    allow(device_, host_.size());
    upload(device_, host_.data(), host_.size());
    forbid(device_, begin_);
    forbid(device_ + end_, host_.size() - end_);
    return device_ + begin_;
  }
  // From the device: into `now_`, to be looked at.
  void fetch() {
    allow(device_, host_.size());
    now_.resize(host_.size());
    download(now_.data(), device_, host_.size());
  }
  double result(int64_t element) const { return read_element(&now_[place(element)], dtype_); }
  // Whether bytes that are no elements, or any at all, are not what was sent.
  // After fetch().
  bool touched(bool elements_too) const {
    for (size_t i = 0; i < host_.size(); ++i) {
      const bool element = i >= begin_ && i < end_ && static_cast<int64_t>((i - begin_) / size()) % stride_ < row_;
      if (now_[i] != host_[i] && (elements_too || !element)) return true;
    }
    return false;
  }

 private:
  static constexpr size_t kZone = 256;
  size_t size() const { return static_cast<size_t>(kDTypeSizes[static_cast<int>(dtype_)]); }
  size_t place(int64_t element) const {
    return begin_ + static_cast<size_t>(element / row_ * stride_ + element % row_) * size();
  }

  DType dtype_;
  int64_t row_, stride_;
  size_t begin_, end_;
  std::vector<std::byte> host_, now_;
  std::byte* device_ = nullptr;
};

}  // namespace cnnkern::cuda
