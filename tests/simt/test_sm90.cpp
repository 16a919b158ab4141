// Hopper's part of the host GPU, tested as test_simt.cpp does: each kernel here comes right, and with one thing wrong
// that has to be told as what it is.
//
// What comes right has to on a Hopper GPU too: nvcc compiles the same file for it, as sm90_test [--list] [NAME].
#include <primitives/device.h>
#include <primitives/launcher.h>
#include <primitives/mma_sm90.h>
#include <primitives/tma.h>

#include <cstdio>
#include <string>
#include <vector>

using namespace cnnkern::cuda;
using cnnkern::DType;

namespace {

// x: 2 images of 5 x 6 pixels with 64 maps, element i is i % 7 - 3; as boxes of 64 pixels, and as the pixels that a tap
// of a filter of 3 x 3 with padding 1 and stride 2 meets. y: 64 rows. Every thread of the first warpgroup writes its
// number.
constexpr int kWidth = 6, kHeight = 5, kImages = 2, kMaps = 64, kRows = 64, kTileBytes = kRows * 128;
constexpr int kThreads = 256, kSecond = 128;  // the first thread of the second warpgroup
struct Params {
  TensorMap boxes, pixels, y;
  float* to;
};
using KernelFunction = void (*)(Params);

__host__ __device__ float x_at(int pixel, int map) { return static_cast<float>((pixel * kMaps + map) % 7 - 3); }
__device__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ bool first_group() { return thread() < kSecond; }

// --- shared memory: two tiles, then barriers -------------------------------------------------------------------------

__device__ Shared<bf16> tile(int i) { return shared_memory<bf16>(i * kTileBytes); }
__device__ Barrier barrier(int i) { return Barrier(shared_memory<uint64_t>(2 * kTileBytes) + i); }
__device__ float element(const Shared<bf16>& tile, int row, int map) {
  return to_float(tile.load(row * 64 + ((map / 8) ^ (row % 8)) * 8 + map % 8));
}

__device__ void make_barriers(int arrivals, bool publish = true) {
  if (thread() == 0) {
    for (int i = 0; i < 4; ++i) barrier(i).make(i < 2 ? 1 : arrivals);
    if (publish) publish_barriers();
  }
}
__device__ void load(const Params& o, int i, int row = 0) {
  barrier(i).expect(kTileBytes);
  load_box(tile(i), o.boxes, barrier(i), 0, 0, row);
}
// By the last block of a cluster: what is wrong in one of them would be there, where addresses have a rank.
__device__ void write_number(const Params& o, bool right) {
  if (blockIdx.x + 1 == gridDim.x) o.to[thread()] = right ? static_cast<float>(thread()) : -1;
}

// --- mbarriers and copies --------------------------------------------------------------------------------------------

enum class Loading { right, no_wait, no_barrier_of_threads, unpublished, too_many_bytes, wrong_parity };

// A box, of which the last rows lie outside of x.
template <Loading kHow> __global__ void load_a_box(const __grid_constant__ Params o) {
  make_barriers(1, kHow != Loading::unpublished);
  if (kHow != Loading::no_barrier_of_threads) __syncthreads();
  if (thread() == kSecond) {
    barrier(0).expect(kHow == Loading::too_many_bytes ? kTileBytes + 16 : kTileBytes);
    load_box(tile(0), o.boxes, barrier(0), 0, 0, 30);
  }
  if (!first_group()) return;
  if (kHow != Loading::no_wait) barrier(0).wait(kHow == Loading::wrong_parity);
  bool right = true;
  for (int map = 0; map < kMaps; ++map) {
    const int row = thread() % kRows;
    right &= element(tile(0), row, map) == (row < 30 ? x_at(30 + row, map) : 0);
  }
  write_number(o, right);
}

enum class Walking { right, beyond_the_maps, beyond_the_images, wrong_column, from_outside };

// The tap (1, 2) of 3 x 3 pixels of y in each image, from the second pixel on.
template <Walking kHow> __global__ void load_pixels_of_a_tap(const __grid_constant__ Params o) {
  make_barriers(1);
  __syncthreads();
  if (thread() == kSecond) {
    constexpr int kColumn = kHow == Walking::wrong_column ? 0 : kHow == Walking::from_outside ? 5 : 1;
    barrier(0).expect(kTileBytes);
    load_pixels(tile(0), o.pixels, barrier(0), kHow == Walking::beyond_the_maps ? kMaps : 0, kColumn, -1,
                kHow == Walking::beyond_the_images ? kImages : 0, 2, 1);
  }
  if (!first_group()) return;
  barrier(0).wait(0);
  const int row = thread() % kRows, pixel = row + 1, image = pixel / 9;
  const int w = pixel % 3 * 2 - 1 + 2, h = pixel / 3 % 3 * 2 - 1 + 1;
  const bool inside = kHow != Walking::beyond_the_maps && kHow != Walking::beyond_the_images && image < kImages &&
                      w < kWidth && h < kHeight;
  bool right = true;
  for (int map = 0; map < kMaps; ++map)
    right &= element(tile(0), row, map) == (inside ? x_at((image * kHeight + h) * kWidth + w, map) : 0);
  write_number(o, right);
}

// The producer fills one tile three times, and all of the first warpgroup read it.
template <bool kRight> __global__ void refill(const __grid_constant__ Params o) {
  make_barriers(kSecond);
  __syncthreads();
  bool right = true;
  for (int i = 0; i < 3; ++i) {
    if (thread() == kSecond) {
      if (kRight) barrier(2).wait((i & 1) ^ 1);
      else if (i > 0) barrier(0).wait((i & 1) ^ 1);  // the tile is there, but has not been read
      load(o, 0, i);
    }
    if (!first_group()) continue;
    barrier(0).wait(i & 1);
    right &= element(tile(0), thread() % 32, 0) == x_at(thread() % 32 + i, 0);
    barrier(2).arrive();
  }
  if (first_group()) write_number(o, right);
}

enum class Copying { right, not_released, not_awaited };

// Each block of a cluster has one tile copied to both.
template <Copying kHow> __global__ void copy_to_both(const __grid_constant__ Params o) {
  make_barriers(2 * kSecond);
  sync_cluster();
  const int rank = static_cast<int>(blockIdx.x) % 2;
  bool right = true;
  for (int i = 0; i < 2; ++i) {
    if (thread() == kSecond) {
      barrier(2).wait((i & 1) ^ 1);
      barrier(0).expect(2 * kTileBytes);
      load_box(tile(rank), o.boxes, barrier(0), 0, 0, rank + i, 3);
    }
    if (!first_group()) continue;
    barrier(0).wait(i & 1);
    for (int from : {0, 1}) right &= element(tile(from), thread() % 32, 5) == x_at(thread() % 32 + from + i, 5);
    for (int to : {0, 1}) barrier(2).arrive_at(kHow == Copying::not_released ? rank : to);
  }
  if (first_group()) write_number(o, right);
  if (kHow != Copying::not_awaited) sync_cluster();  // the other's last arrivals
}

// --- stores ----------------------------------------------------------------------------------------------------------

enum class Storing { right, no_fence, no_barrier, overwritten, not_waited_for };

template <Storing kHow> __global__ void store(const __grid_constant__ Params o) {
  make_barriers(1);
  __syncthreads();
  if (first_group()) {
    const int row = thread() / 2;
    for (int map = thread() % 2; map < kMaps; map += 2)
      tile(0).store(row * 64 + ((map / 8) ^ (row % 8)) * 8 + map % 8, from_float<bf16>(static_cast<float>(map - row)));
  }
  if (kHow != Storing::no_fence || thread() == 3) fence_copy_engine();
  if (kHow != Storing::no_barrier) __syncthreads();
  if (thread() == 0) {
    store_box(o.y, tile(0), 0, 0, 0);
    commit_stores();
    if (kHow == Storing::overwritten) tile(0).store(0, bf16{});
    if (kHow != Storing::not_waited_for) wait_stores<0>();
  }
  if (first_group()) write_number(o, true);
}

// --- products --------------------------------------------------------------------------------------------------------

enum class Multiplying {
  right,
  no_wait_for_copies,
  no_fence,
  no_commit,
  no_wait,
  refilled,
  half_a_group,
  written_by_threads
};

// D[64][128] = A[64][64] B[64][128] of one warpgroup: A is tile 0, B both tiles; rows run along k, or along m or n.
template <Rows kRowsA, Rows kRowsB, Multiplying kHow>
__global__ void multiply_tiles(const __grid_constant__ Params o) {
  make_barriers(4);
  __syncthreads();
  if (thread() == kSecond) {
    load(o, 0);
    load(o, 1, 4);
    if (kHow == Multiplying::refilled) barrier(2).wait(0);
    if (kHow == Multiplying::refilled) load(o, 0);
  }
  if (!first_group()) return;
  float d[64];
#pragma unroll
  for (float& one : d) one = 1;
  for (int i : {0, 1}) {
    if (kHow != Multiplying::no_wait_for_copies) barrier(i).wait(0);
  }
  if (kHow == Multiplying::written_by_threads) {
    sync_warpgroup(1);
    if (thread() == 9) tile(0).store(0, from_float<bf16>(x_at(0, 0)));
    sync_warpgroup(1);
  }
  if (kHow != Multiplying::no_fence) begin_products();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const MatrixTile a = MatrixTile(tile(0)) + step * (kRowsA == Rows::along_k ? 32 : 2048);
    const MatrixTile b =
        MatrixTile(tile(0), kRowsB == Rows::along_k ? 0 : kTileBytes) + step * (kRowsB == Rows::along_k ? 32 : 2048);
    if (kHow != Multiplying::half_a_group || thread() % 32 < 16) multiply<bf16, kRowsA, kRowsB>(d, a, b, step > 0);
  }
  if (kHow != Multiplying::no_commit) commit_products();
  if (kHow == Multiplying::refilled && thread() % 32 == 0) barrier(2).arrive();
  if (kHow != Multiplying::no_wait) wait_products<0>();
  settle(d);
  bool right = true;
#pragma unroll
  for (int i = 0; i < 64; ++i) {  // d is registers
    const int m = thread() / 32 * 16 + thread() % 32 / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + thread() % 4 * 2 + i % 2;
    float sum = 0;
#pragma unroll 1
    for (int k = 0; k < 64; ++k) {
      const auto at = [&](bool second, int row, int map) {
        const int pixel = row + (second ? 4 : 0);
        return pixel < kWidth * kHeight * kImages ? x_at(pixel, map) : 0;
      };
      const float a = kRowsA == Rows::along_k ? at(false, m, k) : at(false, k, m);
      const float b = kRowsB == Rows::along_k ? at(n / 64, n % 64, k) : at(n / 64, k, n % 64);
      sum += a * b;
    }
    right &= d[i] == sum;
  }
  write_number(o, right);
}
template <Multiplying kHow> constexpr KernelFunction kMultiply = multiply_tiles<Rows::along_k, Rows::along_k, kHow>;

// --- all of them -----------------------------------------------------------------------------------------------------

struct Test {
  const char* name;
  KernelFunction kernel;
  const char* expected;  // what the error is named; "" where every thread writes its number, "wrong" where it does not
  int cluster = 1;
};

template <Rows kRowsA, Rows kRowsB>
constexpr KernelFunction kProducts = multiply_tiles<kRowsA, kRowsB, Multiplying::right>;

const Test kTests[] = {
    {"a box", load_a_box<Loading::right>, ""},
    {"pixels of a tap", load_pixels_of_a_tap<Walking::right>, ""},
    {"pixels of a tap, beyond the maps", load_pixels_of_a_tap<Walking::beyond_the_maps>, ""},
    {"pixels of a tap, beyond the images", load_pixels_of_a_tap<Walking::beyond_the_images>, ""},
    {"a tile is filled again", refill<true>, ""},
    {"copies to two blocks", copy_to_both<Copying::right>, "", 2},
    {"a store", store<Storing::right>, ""},
    {"products", kProducts<Rows::along_k, Rows::along_k>, ""},
    {"products, A by m", kProducts<Rows::along_mn, Rows::along_k>, ""},
    {"products, B by n", kProducts<Rows::along_k, Rows::along_mn>, ""},
    {"products, both", kProducts<Rows::along_mn, Rows::along_mn>, ""},
    {"products, both, in a cluster", kProducts<Rows::along_mn, Rows::along_mn>, "", 2},
#if defined(CNNKERN_SIMT)
    {"a box that is not waited for", load_a_box<Loading::no_wait>, "race or poison"},
    {"the phase before is waited for", load_a_box<Loading::wrong_parity>, "race or poison"},
    {"an mbarrier that others do not know of", load_a_box<Loading::no_barrier_of_threads>, "race or poison"},
    {"an mbarrier that the copy engine does not know of", load_a_box<Loading::unpublished>, "misuse"},
    {"more bytes are expected than come", load_a_box<Loading::too_many_bytes>, "deadlock"},
    {"pixels from the wrong column", load_pixels_of_a_tap<Walking::wrong_column>, "wrong"},
    {"pixels from outside of their box", load_pixels_of_a_tap<Walking::from_outside>, "misuse"},
    {"a tile is filled before it is free", refill<false>, "race"},
    {"a copy to a block that has not released its tile", copy_to_both<Copying::not_released>, "race", 2},
    {"arrivals that a block does not wait for", copy_to_both<Copying::not_awaited>, "misuse", 2},
    {"a store without the fence of each who wrote", store<Storing::no_fence>, "race"},
    {"a store without a barrier", store<Storing::no_barrier>, "race or poison"},
    {"what is stored is overwritten", store<Storing::overwritten>, "race"},
    {"a store that is not waited for", store<Storing::not_waited_for>, "misuse"},
    {"products of what has not come", kMultiply<Multiplying::no_wait_for_copies>, "race or poison"},
    {"products without their fence", kMultiply<Multiplying::no_fence>, "misuse"},
    {"products that are not committed", kMultiply<Multiplying::no_commit>, "wrong"},
    {"products that are not waited for", kMultiply<Multiplying::no_wait>, "wrong"},
    {"a tile is released while products read it", kMultiply<Multiplying::refilled>, "race"},
    {"products of half a warp", kMultiply<Multiplying::half_a_group>, "divergence"},
    {"products of what threads wrote, without a fence", kMultiply<Multiplying::written_by_threads>, "race"},
#endif
};

// Elements on the device.
template <class T> class Memory {
 public:
  explicit Memory(const std::vector<T>& values) : host_(values), at_(static_cast<T*>(allocate(bytes()))) {
    upload(at_, host_.data(), bytes());
  }
  ~Memory() { release(at_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  T* at() const { return at_; }
  const std::vector<T>& fetched() {
    download(host_.data(), at_, bytes());
    return host_;
  }

 private:
  size_t bytes() const { return host_.size() * sizeof(T); }

  std::vector<T> host_;
  T* at_;
};

// What an error is named.
std::string fault_of(const std::exception& error) {
  std::printf("    %s\n", error.what());
#if defined(CNNKERN_SIMT)
  if (const auto* told = dynamic_cast<const simt::Error*>(&error))
    return simt::kFaultNames[static_cast<int>(told->fault)];
#endif
  return "error";
}

std::string outcome(const Test& test) {
  constexpr int kPixels = kImages * kHeight * kWidth;
  std::vector<bf16> values(kPixels * kMaps);
  for (int i = 0; i < kPixels * kMaps; ++i) values[i] = __float2bfloat16_rn(x_at(i / kMaps, i % kMaps));
  Memory<bf16> x(values), y(std::vector<bf16>(kRows * kMaps));
  Memory<float> to(std::vector<float>(kSecond, -1));

  const cnnkern::ConvProblem problem;
  const std::string name = test.name;
  const Call call{problem, name};
  const TensorView pixels{.address = x.at(),
                          .dtype = DType::bf16,
                          .rank = 4,
                          .size = {kMaps, kWidth, kHeight, kImages},
                          .stride = {1, kMaps, kWidth * kMaps, kHeight * kWidth * kMaps},
                          .box = {64, kRows},
                          .pixels = {.walked = true, .lower = {-1, -1}, .upper = {-1, -1}, .step = {2, 2}}};
  const auto rows = [&](const bf16* from, int64_t count) {
    return TensorView{.address = from,
                      .dtype = DType::bf16,
                      .rank = 3,
                      .size = {kMaps, 1, count},
                      .stride = {1, kMaps, kMaps},
                      .box = {64, 1, kRows},
                      .pixels = {}};
  };
  try {
    const Params params{tensor_map(rows(x.at(), kPixels), call), tensor_map(pixels, call),
                        tensor_map(rows(y.at(), kRows), call), to.at()};
    launch(test.kernel,
           {.x = test.cluster, .threads = kThreads, .shared_bytes = 2 * kTileBytes + 32, .cluster = test.cluster},
           params, call);
    for (int i = 0; i < kSecond; ++i) {
      if (to.fetched()[static_cast<size_t>(i)] != static_cast<float>(i)) return "wrong";
    }
  } catch (const std::exception& error) {
    return fault_of(error);
  }
  if (name == "a store") {
    const std::vector<bf16>& stored = y.fetched();
    for (int i = 0; i < kRows * kMaps; ++i) {
      if (__bfloat162float(stored[i]) != static_cast<float>(i % kMaps - i / kMaps)) return "wrong";
    }
  }
  return "";
}

// What nothing orders before a read may come after it: then nobody has written there.
bool as_expected(const std::string& found, const std::string& expected) {
  return expected == "race or poison" ? found == "race" || found == "poison" : found == expected;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string asked = argc > 1 ? argv[1] : "";
  int failures = 0, run = 0;
  if (capability_of_device() != 90) return 0;  // it has none of this
  for (const Test& test : kTests) {
    if (asked == "--list") std::printf("%s\n", test.name);
    if (!asked.empty() && asked != test.name) continue;
    ++run;
    for (const uint64_t seed : {0, 1, 2, 3}) {
#if defined(CNNKERN_SIMT)
      simt::set_seed(seed);
#endif
      const std::string found = outcome(test);
      if (as_expected(found, test.expected)) continue;
      ++failures;
      std::printf("FAILED: %s, seed %d: '%s', not '%s'\n", test.name, static_cast<int>(seed), found.c_str(),
                  test.expected);
    }
  }
  if (asked != "--list") std::printf("%d tests, %d failures\n", run, failures);
  return failures || (run == 0 && asked != "--list");
}
