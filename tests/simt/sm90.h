// What Hopper has of its own, on simt.h: barriers in shared memory that count bytes, the copy engine, and tensor cores
// that read shared memory on their own.
//
//   mbarriers   who waits for a phase has seen what all who arrived had done, and the bytes that came
//   copies      have their place from when they are issued, and bring their bytes late
//   products    read their operands from when they are issued until they are waited for; accumulators are NaN meanwhile
#pragma once

#include "mma.h"
#include "simt.h"

namespace simt {

// A place in the shared memory of a block.
struct Place {
  Block* block;
  int64_t offset;  // bytes
};

// --- mbarriers (PTX ISA, mbarrier) -----------------------------------------------------------------------------------

void make_mbarrier(const Place& barrier, int arrivals, const Site& at);
// What the running thread has made is known to the copy engine.
void publish_mbarriers();
// One arrival, and bytes to expect besides.
void arrive(const Place& barrier, int bytes, const Site& at);
void wait(const Place& barrier, int parity, const Site& at);

// --- the copy engine (PTX ISA, cp.async.bulk.tensor) -----------------------------------------------------------------

constexpr int kRowBytes = 128;
using Row = std::array<std::byte, kRowBytes>;

// Every row is swizzled in 128 bytes. Copies rows to one place in every block of the cluster whose bit is set, each
// counted by the barrier in that block. row_of(i) is called when the bytes come.
void load_rows(const Place& to, const Place& barrier, unsigned blocks, int rows, const std::function<Row(int)>& row_of,
               const Site& at);

// Rows on their way out: to_row(i, row) is called some time after. Of what threads have written, the copy engine sees
// what came before a fence_async() of the thread that wrote it, if the running thread has seen that.
void store_rows(const Place& from, int rows, const std::function<void(int, const Row&)>& to_row, const Site& at);
void commit_stores();
// Until all but `pending` groups of the running thread, the latest, have been read.
void wait_stores(size_t pending, const Site& at);
void fence_async();

// --- tensor cores (PTX ISA, wgmma) -----------------------------------------------------------------------------------

// An instruction as a thread sees it: d[n / 2] (+)= a b, operands by descriptor, their rows along k or not.
struct Product {
  float* d;
  int n;
  uint64_t a, b;
  bool rows_along_k_a, rows_along_k_b, plus;
  Format format;
};
void begin_products(const Site& at);
void multiply(Product product, const Site& at);
void commit_products(const Site& at);
void wait_products(size_t pending, const Site& at);
}  // namespace simt
