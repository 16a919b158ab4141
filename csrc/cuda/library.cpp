#include "library.h"

#include <exception>
#include <stdexcept>
#include <string>

#include "kernel_list.h"

using cnnkern::ConvProblem;
using cnnkern::cuda::Flags;
using cnnkern::cuda::Kernel;

struct CnnkernCudaCall {
  const Kernel& kernel;
  ConvProblem problem;
};

namespace {

thread_local std::string answer, error;

Flags flags_of(int64_t bits, int capability) {
  return {.strict = (bits & 1) != 0,
          .deterministic = (bits & 2) != 0,
          .tf32 = (bits & 4) != 0,
          .unaligned = (bits & 8) != 0,
          .capability = capability};
}

// What body returns, or null with the reason in `error`.
template <class Body>
auto caught(const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception& exception) {
    error = exception.what();
    return nullptr;
  }
}

}  // namespace

extern "C" {

const char* cnnkern_cuda_architectures() { return CNNKERN_CUDA_ARCHS; }

const char* cnnkern_cuda_kernels() {
  answer.clear();
  for (const Kernel& kernel : cnnkern::cuda::kernels()) answer += kernel.name + "\n";
  return answer.c_str();
}

const char* cnnkern_cuda_candidates(const char* problem, int64_t flags, int capability) {
  return caught([&] {
    const ConvProblem p = ConvProblem::parse(problem);
    const std::string middle = "_" + std::string(cnnkern::kDirectionNames[static_cast<int>(p.direction)]) + "_" +
                               std::string(cnnkern::kDTypeNames[static_cast<int>(p.dtype)]) + "_";
    answer.clear();
    for (const Kernel& kernel : cnnkern::cuda::kernels()) {
      if (kernel.name.find(middle) == std::string::npos) continue;
      const std::string why_not = kernel.why_not(p, flags_of(flags, capability));
      answer += kernel.name + "\t" + why_not + "\t";
      if (why_not.empty() && kernel.rather_not) answer += kernel.rather_not(p);
      answer += "\n";
    }
    return answer.c_str();
  });
}

CnnkernCudaCall* cnnkern_cuda_prepare(const char* kernel, const char* problem, int64_t flags, int capability) {
  return caught([&] {
    const Kernel& named = cnnkern::cuda::kernel_named(kernel);
    const ConvProblem p = ConvProblem::parse(problem);
    const std::string why_not = named.why_not(p, flags_of(flags, capability));
    if (!why_not.empty()) throw std::runtime_error(named.name + " cannot compute " + problem + ": " + why_not);
    return new CnnkernCudaCall{named, p};
  });
}

int64_t cnnkern_cuda_workspace_bytes(const CnnkernCudaCall* call) {
  return call->kernel.workspace_bytes ? call->kernel.workspace_bytes(call->problem) : 0;
}

void cnnkern_cuda_release(CnnkernCudaCall* call) { delete call; }

const char* cnnkern_cuda_run(const CnnkernCudaCall* call, const cnnkern::cuda::Operands* operands, int device,
                             void* stream) {
  try {
    call->kernel.run(*operands, {call->problem, call->kernel.name, device, stream});
    return nullptr;
  } catch (const std::exception& exception) {
    error = exception.what();
    return error.c_str();
  }
}

const char* cnnkern_cuda_error() { return error.c_str(); }

int64_t cnnkern_cuda_operands_size() { return sizeof(cnnkern::cuda::Operands); }

}  // extern "C"
