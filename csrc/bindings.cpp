// The Python module cnnkern._C: lists of kernels, questions to them, problem strings, CPU features and build facts.
// It takes no tensors; those go through the ops of libcnnkern_cpu.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "conv_problem.h"
#include "cpu/features.h"
#include "cpu/kernel_list.h"
#include "cpu/memo.h"

namespace py = pybind11;

#if defined(__clang__)
#define CNNKERN_COMPILER "clang " __clang_version__
#else
#define CNNKERN_COMPILER "gcc " __VERSION__
#endif

namespace cnnkern {
namespace {

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernel& kernel : cpu::kernels()) names.push_back(kernel.name);
  return names;
}

std::vector<std::tuple<std::string, std::string, std::string>> candidates(const std::string& text) {
  const ConvProblem problem = cpu::staged(ConvProblem::parse(text));
  std::vector<std::tuple<std::string, std::string, std::string>> found;
  for (const Kernel* kernel : cpu::kernels_for(problem.direction, problem.dtype)) {
    found.emplace_back(kernel->name, kernel->why_not(problem),
                       kernel->rather_not ? kernel->rather_not(problem) : std::string());
  }
  return found;
}

std::string why_not(const std::string& name, const std::string& text) {
  return cpu::why_not(cpu::kernel_named(name), ConvProblem::parse(text));
}

std::pair<int64_t, int64_t> pixels_of_y(const std::string& text) {
  const ConvProblem problem = ConvProblem::parse(text);
  return {problem.p(), problem.q()};
}

// The callable is kept for good: a miss may still ask it while the interpreter shuts down.
void set_chooser(py::object callable) {
  if (callable.is_none()) return cpu::set_chooser(nullptr);
  PyObject* const kept = callable.release().ptr();
  cpu::set_chooser([kept](const std::string& problem, int64_t flags) -> std::string {
    const py::gil_scoped_acquire gil;
    try {
      return py::reinterpret_borrow<py::object>(kept)(problem, flags).cast<std::string>();
    } catch (py::error_already_set& error) {
      // A Python exception cannot pass through torch's C++ frames as itself.
      throw std::runtime_error(py::str(error.value()).cast<std::string>());
    }
  });
}

py::dict memo() {
  py::dict entries;
  for (const auto& [problem, kernel] : cpu::memo_entries()) entries[py::str(problem)] = kernel;
  return entries;
}

py::dict cpu_features() {
  py::dict found;
  for (const auto& [name, present] : cpu::features()) found[py::str(std::string(name))] = present;
  return found;
}

py::dict build_info() {
  py::dict facts;
  facts["compiler"] = CNNKERN_COMPILER;
  facts["cplusplus"] = __cplusplus;
  facts["isas"] = cpu::compiled_isas();
  facts["torch_abi"] = "2.10";
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernel lists, problem strings, CPU features and build facts of cnnkern's compiled part.";
  m.def("kernels", kernel_names, "Names of all CPU kernels in dispatch order, reference kernels last.");
  m.def("candidates", candidates, py::arg("problem"),
        "(name, why_not, rather_not) of each kernel for the problem's direction and dtype, in dispatch order.");
  m.def("why_not", why_not, py::arg("name"), py::arg("problem"),
        "Why the kernel cannot compute the problem; empty if it can.");
  m.def(
      "parse", [](const std::string& text) { return ConvProblem::parse(text).to_string(); }, py::arg("problem"),
      "The canonical form of a problem string. ValueError names the token at fault.");
  m.def("output_size", pixels_of_y, py::arg("problem"), "(p, q) of a problem.");
  m.def(
      "set_chooser", set_chooser, py::arg("chooser"),
      "Sets the callable (problem: str, flags: int) -> kernel name that is asked on a memo miss, and clears the memo. "
      "None: the first kernel in dispatch order that has nothing against the problem.");
  m.def("memo", memo, "'<problem> flags=<flags> threads=<threads>' -> kernel name, for each decision kept.");
  m.def("clear_memo", cpu::clear_memo, "Forgets all decisions.");
  m.def("cpu_features", cpu_features, "Processor features that instruction sets need -> whether they can be used.");
  m.def(
      "isas", [] { return cpu::usable_isas(); },
      "Instruction sets in use, best first. CNNKERN_ISA names the best one to use.");
  m.def("build_info", build_info, "Compiler, C++ standard, compiled instruction sets, torch ABI.");
}

}  // namespace cnnkern
