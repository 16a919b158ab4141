#include "library.h"

#include <stdexcept>
#include <string>

#include "kernel_list.h"
#include "library_error.h"

using namespace cnnkern;
using namespace cnnkern::cuda;

struct CnnkernCudaCall {
  const Kernel& kernel;
  ConvProblem problem;
};

extern "C" {

const char* cnnkern_cuda_architectures() { return CNNKERN_CUDA_ARCHS; }

const char* cnnkern_cuda_kernels() {
  std::string names;
  for (const Kernel& kernel : kernels()) names += kernel.name + "\n";
  return kept(std::move(names));
}

const char* cnnkern_cuda_candidates(const char* problem, int64_t flags, int capability) {
  return caught([&] {
    const ConvProblem p = ConvProblem::parse(problem);
    const std::string middle = "_" + std::string(kDirectionNames[static_cast<int>(p.direction)]) + "_" +
                               std::string(kDTypeNames[static_cast<int>(p.dtype)]) + "_";
    std::string answers;
    for (const Kernel& kernel : kernels()) {
      if (kernel.name.find(middle) == std::string::npos) continue;
      const std::string why_not = kernel.why_not(p, flags_of(flags, capability));
      answers += kernel.name + "\t" + why_not + "\t";
      if (why_not.empty() && kernel.rather_not) answers += kernel.rather_not(p);
      answers += "\n";
    }
    return kept(std::move(answers));
  });
}

CnnkernCudaCall* cnnkern_cuda_prepare(const char* kernel, const char* problem, int64_t flags, int capability) {
  return caught([&] {
    const Kernel& named = kernel_named(kernel);
    const ConvProblem p = ConvProblem::parse(problem);
    const std::string why_not = named.why_not(p, flags_of(flags, capability));
    if (!why_not.empty()) throw std::runtime_error(named.name + " cannot compute " + problem + ": " + why_not);
    return new CnnkernCudaCall{named, p};
  });
}

int64_t cnnkern_cuda_workspace_bytes(const CnnkernCudaCall* call) {
  return call->kernel.workspace_bytes ? call->kernel.workspace_bytes(call->problem) : 0;
}

int64_t cnnkern_cuda_partials(const CnnkernCudaCall* call) { return partials_of(call->kernel, call->problem); }

void cnnkern_cuda_release(CnnkernCudaCall* call) { delete call; }

const char* cnnkern_cuda_run(const CnnkernCudaCall* call, const Operands* operands, int device, void* stream) {
  return error_of([&] { call->kernel.run(*operands, {call->problem, call->kernel.name, device, stream}); });
}

const char* cnnkern_cuda_error() { return last_error.c_str(); }

int64_t cnnkern_cuda_operands_size() { return sizeof(Operands); }

}  // extern "C"
