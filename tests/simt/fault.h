// What a kernel can do wrong, told by an exception.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace simt {

using Site = std::source_location;  // a line of a kernel

enum class Fault {
  race,        // two accesses, one of them a write, that nothing orders
  poison,      // a read of shared memory that nobody has written
  bounds,      // an access outside of the block's shared memory
  alignment,   // an address that is no multiple of what the access needs
  divergence,  // threads that should carry out one operation together are in different places
  deadlock,    // every thread that is left waits
  misuse,      // anything else that the hardware would refuse or leave undefined
};
constexpr const char* kFaultNames[] = {"race",       "poison",   "out of bounds", "misaligned",
                                       "divergence", "deadlock", "misuse"};

class Error : public std::runtime_error {
 public:
  Error(Fault fault, const std::string& message) : std::runtime_error(message), fault(fault) {}
  const Fault fault;
};

inline std::string to_string(const Site& at) {
  const std::string file = at.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
}
inline bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}

}  // namespace simt
