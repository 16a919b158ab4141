#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

// Who is being left and who is being entered: what a fiber that starts or goes on has to know.
Fiber* left = nullptr;
Fiber* running = nullptr;

}  // namespace

void begin();

#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
// swapcontext keeps the signal mask by a system call: 222 ns a switch on a Zen 4 core, where this takes 8.
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
#endif

Fiber::Fiber(void (*entry)()) : entry_(entry), stack_bytes_(kStackBytes) {
  const auto guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  memory_ =
      mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory_, guard, PROT_NONE);  // a stack that overflows is a fault at once
  char* stack = static_cast<char*>(memory_) + guard;
  stack_ = stack;
#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
  // What simt_switch pops: six registers and where to return to; above it a return address of null ends every trace.
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(&begin);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack = {.ss_sp = stack, .ss_flags = 0, .ss_size = kStackBytes};
  context_.uc_link = nullptr;
  makecontext(&context_, begin, 0);
#endif
}

Fiber::~Fiber() {
  if (!memory_) return;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, stack_bytes_);
#endif
  munmap(memory_, stack_bytes_ + static_cast<size_t>(sysconf(_SC_PAGESIZE)));
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack_, &stack, &bytes);
  if (!left->memory_) left->stack_ = stack, left->stack_bytes_ = bytes;
#endif
}

void begin() {
  running->entered();
  running->entry_();
  __builtin_unreachable();
}

void Fiber::switch_to(Fiber& to) {
  left = this;
  running = &to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.stack_bytes_);
#endif
#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
  simt_switch(&stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&context_, &to.context_);
#endif
  entered();
}

}  // namespace simt
