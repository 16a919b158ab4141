// A fiber: a stack of its own, and a way to go on where another one stopped. AddressSanitizer is told of every switch.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  Fiber() = default;  // what is running now: it gets its place when it is first left
  // Begins in entry(), which never returns.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves this fiber, the one that is running, for another. Returns when somebody switches back.
  void switch_to(Fiber& to);

 private:
  friend void begin();
  void entered();

  void (*entry_)() = nullptr;
  void* memory_ = nullptr;  // null where the stack is not its own
  const void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace simt
