#include "sm90.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <utility>

namespace simt {
namespace {

// --- what a cluster keeps --------------------------------------------------------------------------------------------

struct Mbarrier {
  uint32_t maker = 0;
  bool published = false;
  int count = 0, pending = 0;
  int64_t bytes = 0;  // expected and not there, or there and not yet expected
  uint32_t phase = 0;
  Clock arriving, completed;
  Waiting waiting;
};

// Stores of a thread.
struct Stores {
  struct Group {
    int under_way = 0;
    Clock clock;
  };
  std::shared_ptr<Group> open = std::make_shared<Group>();
  std::deque<std::shared_ptr<Group>> committed;  // oldest first
  Waiting waiting;
};

// What a warp multiplies.
struct Products {
  Agent agent;
  std::deque<Epoch> groups;  // committed, oldest first
  size_t committed = 0;      // how often
  bool open = false;         // since the last commit
};

struct Accumulators {
  std::vector<float> values;
  size_t group;  // the last that writes them
};

struct State {
  std::deque<Mbarrier> mbarriers;
  std::map<const Thread*, Stores> stores;
  std::vector<uint32_t> fenced;  // by thread: up to when its writes are known to the asynchronous proxy
  std::map<const Warp*, Products> products;
  std::map<std::pair<const Thread*, float*>, Accumulators> accumulators;
  std::map<const Warp*, bool> begun;  // products
};
State& state() { return self().block->cluster->kept<State>(); }

// --- mbarriers -------------------------------------------------------------------------------------------------------

constexpr uint64_t kMagic = 0x6d626172ull << 32;  // what lies in shared memory: above the number of an mbarrier

// The barrier at a place: made before, as the running thread knows.
Mbarrier& at_place(const Place& place, const Site& at) {
  uint64_t id;
  std::memcpy(&id, place.block->memory->read(self(), place.offset, sizeof id, sizeof id, at), sizeof id);
  const uint64_t number = id ^ kMagic;
  if (number >= state().mbarriers.size()) fail(Fault::misuse, "there is no mbarrier", at);
  return state().mbarriers[number];
}

void complete_if(Mbarrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.completed = std::exchange(barrier.arriving, {});
  barrier.pending = barrier.count;
  ++barrier.phase;
  barrier.waiting.wake();
}

}  // namespace

void make_mbarrier(const Place& place, int arrivals, const Site& at) {
  const uint64_t id = kMagic ^ state().mbarriers.size();
  Mbarrier& barrier = state().mbarriers.emplace_back();
  barrier.maker = self().id;
  barrier.count = barrier.pending = arrivals;
  std::memcpy(place.block->memory->write(self(), place.offset, sizeof id, sizeof id, at), &id, sizeof id);
}

void publish_mbarriers() {
  for (Mbarrier& barrier : state().mbarriers) barrier.published |= barrier.maker == self().id;
}

void arrive(const Place& place, int bytes, const Site& at) {
  if (!place.block->live) fail(Fault::misuse, "arrives at an mbarrier of a block that has ended", at);
  Mbarrier& barrier = at_place(place, at);
  if (barrier.pending == 0) fail(Fault::misuse, "arrives at an mbarrier more often than it counts", at);
  place.block->note(self(), at);
  self().release(barrier.arriving);
  --barrier.pending;
  barrier.bytes += bytes;
  complete_if(barrier);
}

void wait(const Place& place, int parity, const Site& at) {
  Mbarrier& barrier = at_place(place, at);
  while (static_cast<int>(barrier.phase & 1) == parity) barrier.waiting.wait("a phase of an mbarrier", at);
  self().acquire(barrier.completed);
}

// --- the copy engine -------------------------------------------------------------------------------------------------

void load_rows(const Place& to, const Place& counted, unsigned blocks, int rows, const std::function<Row(int)>& row_of,
               const Site& at) {
  for (const auto& there : self().block->cluster->blocks) {
    if (!(blocks >> there->rank & 1)) continue;
    Agent agent = start_agent("a copy that " + describe(self().id) + " has issued");
    std::byte* const begin = there->memory->write(agent, to.offset, static_cast<size_t>(rows) * kRowBytes, 1024, at);
    Mbarrier& barrier = at_place({there.get(), counted.offset}, at);
    if (!barrier.published) fail(Fault::misuse, "an mbarrier that the copy engine does not know of", at);
    if (!there->live) fail(Fault::misuse, "copies to a block that has ended", at);
    there->note(agent, at);
    const Block* const block = there.get();
    later([agent, begin, rows, row_of, block, at, &barrier]() mutable {
      if (!block->live) fail(Fault::misuse, "a block ends before what is copied to it has come", at);
      for (int i = 0; i < rows; ++i) {
        const Row row = row_of(i);
        for (int piece = 0; piece < 8; ++piece)
          std::memcpy(begin + i * kRowBytes + (piece ^ (i % 8)) * 16, row.data() + piece * 16, 16);
      }
      end_agent(agent);
      agent.release(barrier.arriving);
      barrier.bytes -= int64_t{rows} * kRowBytes;
      complete_if(barrier);
    });
  }
}

namespace {

// What an asynchronous agent that this thread starts has seen: of a thread's own writes only what has been fenced.
Clock seen_asynchronously(const Thread& thread) {
  Clock seen;
  const std::vector<uint32_t>& fenced = state().fenced;
  const Cluster& cluster = *thread.block->cluster;
  const auto threads = static_cast<uint32_t>(cluster.blocks.size() * cluster.blocks[0]->threads.size());
  for (uint32_t id = 0; id < agent_count(); ++id) {
    uint32_t time = id == thread.id ? thread.time : thread.seen.of(id);
    if (id < threads) time = std::min(time, id < fenced.size() ? fenced[id] : 0);
    if (time) seen.add({id, time});
  }
  return seen;
}

}  // namespace

void fence_async() {
  std::vector<uint32_t>& fenced = state().fenced;
  if (fenced.size() <= self().id) fenced.resize(self().id + 1);
  fenced[self().id] = self().time;
  ++self().time;
}

void store_rows(const Place& from, int rows, const std::function<void(int, const Row&)>& to_row, const Site& at) {
  Thread* const thread = &self();
  const Clock seen = seen_asynchronously(*thread);
  Agent agent = start_agent("a store that " + describe(thread->id) + " has issued");
  agent.starter = {};
  agent.seen = seen;
  const std::byte* const begin =
      from.block->memory->read(agent, from.offset, static_cast<size_t>(rows) * kRowBytes, 1024, at);
  const std::shared_ptr<Stores::Group> group = state().stores[thread].open;
  ++group->under_way;
  later([=]() mutable {
    if (thread->exited) fail(Fault::misuse, "exits before its stores have been read", at);
    for (int i = 0; i < rows; ++i) {
      Row row;
      for (int piece = 0; piece < 8; ++piece)
        std::memcpy(row.data() + piece * 16, begin + i * kRowBytes + (piece ^ (i % 8)) * 16, 16);
      to_row(i, row);
    }
    end_agent(agent);
    agent.release(group->clock);
    --group->under_way;
    state().stores[thread].waiting.wake();
  });
}

void commit_stores() {
  Stores& mine = state().stores[&self()];
  mine.committed.push_back(std::exchange(mine.open, std::make_shared<Stores::Group>()));
}

void wait_stores(size_t pending, const Site& at) {
  Stores& mine = state().stores[&self()];
  for (; mine.committed.size() > pending; mine.committed.pop_front()) {
    while (mine.committed.front()->under_way) mine.waiting.wait("the copy engine to read what it stores", at);
    self().acquire(mine.committed.front()->clock);
  }
}

// --- tensor cores ----------------------------------------------------------------------------------------------------

namespace {

const Warp& warp_of(const Thread& thread) { return thread.block->warps[thread.warp]; }

// An operand as its descriptor says (PTX ISA, "Matrix descriptor"), 128 bytes swizzled.
class Operand {
 public:
  Operand(uint64_t bits, bool along_k, size_t element, const Site& at)
      : start_(bits << 4 & 0x3fff0),
        block_(bits >> 12 & 0x3fff0),
        eight_(bits >> 28 & 0x3fff0),
        along_k_(along_k),
        element_(element) {
    if (bits >> 62 != 1 || (bits >> 49 & 7)) fail(Fault::misuse, "a descriptor that is not of 128 bytes swizzled", at);
  }
  bool along_k() const { return along_k_; }
  // Of row or column mn, gemm_k k.
  int64_t offset(int mn, int k) const {
    const int row = along_k_ ? mn : k;
    const int64_t along = (along_k_ ? k : mn) * static_cast<int64_t>(element_);
    const int64_t at = start_ + row / 8 * eight_ + row % 8 * kRowBytes +
                       (along_k_ ? along : along / kRowBytes * block_ + along % kRowBytes);
    return at ^ (at >> 3 & 0x70);
  }

 private:
  int64_t start_, block_, eight_;
  bool along_k_;
  size_t element_;
};

// `count` rows or columns from `begin` on, of 32 bytes of gemm_k each, as float: [depth][count].
std::vector<float> fetch(const Operand& operand, int begin, int count, Format format, const Agent& agent, Block& block,
                         const Site& at) {
  const int element_bytes = format == Format::tf32 ? 4 : 2, depth = 32 / element_bytes, piece = 16 / element_bytes;
  std::vector<float> values(static_cast<size_t>(count) * depth);
  const bool along_k = operand.along_k();
  for (int i = 0; i < count; i += along_k ? 1 : piece) {
    for (int k = 0; k < depth; k += along_k ? piece : 1) {
      const std::byte* bytes = block.memory->read(agent, operand.offset(begin + i, k), 16, 16, at);
      for (int e = 0; e < piece; ++e)
        values[(k + (along_k ? e : 0)) * count + i + (along_k ? 0 : e)] = element(bytes + e * element_bytes, format);
    }
  }
  return values;
}

struct ProductOfLane {
  Product product;
  Thread* thread;
  Site at;
};

void perform_product(void* const* deposits) {
  const auto& first = *static_cast<const ProductOfLane*>(deposits[0]);
  const Product& product = first.product;
  Thread& thread = *first.thread;
  Block& block = *thread.block;
  const Warp* warp = &warp_of(thread);
  auto [found, is_first] = state().products.try_emplace(warp);
  Products& products = found->second;
  if (is_first) products.agent = start_agent("a product of the warp of " + describe(thread.id));
  products.agent.starter = {};
  products.agent.seen = seen_asynchronously(thread);
  products.open = true;

  const int depth = product.format == Format::tf32 ? 8 : 16;
  const auto element = static_cast<size_t>(32 / depth);
  const Operand a(product.a, product.rows_along_k_a, element, first.at),
      b(product.b, product.rows_along_k_b, element, first.at);
  const int n = product.n;
  const auto left = fetch(a, thread.warp % 4 * 16, 16, product.format, products.agent, block, first.at);
  const auto right = fetch(b, 0, n, product.format, products.agent, block, first.at);
  std::vector<float> sums(static_cast<size_t>(16 * n));
  for (int k = 0; k < depth; ++k) {
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < n; ++column) sums[row * n + column] += left[k * 16 + row] * right[k * n + column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const ProductOfLane*>(deposits[lane]);
    const Product& mine = own.product;
    if (mine.a != product.a || mine.b != product.b || mine.plus != product.plus)
      fail(Fault::divergence, "lanes of a warp multiply different operands", first.at);
    const auto elements = static_cast<size_t>(n / 2);
    auto [entry, is_new] = state().accumulators.try_emplace({own.thread, mine.d});
    auto& values = entry->second.values;
    if (is_new) values.assign(mine.d, mine.d + elements);
    entry->second.group = products.committed;
    for (size_t i = 0; i < elements; ++i) {
      const int row = lane / 4 + static_cast<int>(i / 2 % 2) * 8;
      const int column = static_cast<int>(i / 4) * 8 + lane % 4 * 2 + static_cast<int>(i % 2);
      values[i] = sums[row * n + column] + (mine.plus ? values[i] : 0);
      mine.d[i] = std::numeric_limits<float>::quiet_NaN();  // until it is waited for
    }
  }
}

void perform_commit(void* const* deposits) {
  const auto found = state().products.find(&warp_of(*static_cast<const Thread*>(deposits[0])));
  if (found == state().products.end()) return;
  Products& products = found->second;
  products.groups.push_back(products.agent.now());
  ++products.agent.time;
  ++products.committed;
  products.open = false;
}

// What a warp's groups have summed up, but for those that are pending.
void hand_over(const Warp* warp, const Products& products) {
  auto& accumulators = state().accumulators;
  const size_t complete = products.committed - products.groups.size();
  for (auto it = accumulators.begin(); it != accumulators.end();) {
    const auto& [thread, d] = it->first;
    if (&warp_of(*thread) != warp || it->second.group >= complete) {
      ++it;
      continue;
    }
    std::copy(it->second.values.begin(), it->second.values.end(), d);
    it = accumulators.erase(it);
  }
}

struct WaitOfLane {
  Thread* thread;
  size_t pending;
};

void perform_wait(void* const* deposits) {
  const auto& first = *static_cast<const WaitOfLane*>(deposits[0]);
  const Warp* warp = &warp_of(*first.thread);
  const auto found = state().products.find(warp);
  if (found == state().products.end()) return;
  Products& products = found->second;
  for (; products.groups.size() > first.pending; products.groups.pop_front()) {
    for (int lane = 0; lane < 32; ++lane)
      static_cast<const WaitOfLane*>(deposits[lane])->thread->seen.add(products.groups.front());
  }
  hand_over(warp, products);
  if (!products.groups.empty() || products.open) return;
  --products.agent.time;  // that of its last act
  end_agent(products.agent);
  state().products.erase(found);
  state().begun.erase(warp);
}

}  // namespace

void begin_products(const Site&) { state().begun[&warp_of(self())] = true; }

void multiply(Product product, const Site& at) {
  ProductOfLane deposit{product, &self(), at};
  if (!state().begun[&warp_of(self())]) fail(Fault::misuse, "multiplies without a wgmma.fence", at);
  static constexpr Meeting::Operation kOperation{"a product", perform_product, false, true};
  meet_warp(0xffffffff, &deposit, kOperation, at);
}

void commit_products(const Site& at) {
  static constexpr Meeting::Operation kOperation{"a commit of products", perform_commit, false, true};
  meet_warp(0xffffffff, &self(), kOperation, at);
}

void wait_products(size_t pending, const Site& at) {
  WaitOfLane deposit{&self(), pending};
  static constexpr Meeting::Operation kOperation{"a wait for products", perform_wait, false, true};
  meet_warp(0xffffffff, &deposit, kOperation, at);
}

}  // namespace simt
