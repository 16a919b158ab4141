#include <cstdio>
#include <mutex>

#include "check.h"

namespace cnnkern::testing {
namespace {

std::mutex mutex;
int failures = 0;

}  // namespace

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

void report(const char* file, int line, const std::string& failure) {
  const std::lock_guard lock(mutex);
  ++failures;
  std::printf("%s:%d: %s\n", file, line, failure.c_str());
}

}  // namespace cnnkern::testing

int main() {
  using namespace cnnkern::testing;
  for (const Test& test : tests()) {
    const int before = failures;
    test.run();
    std::printf("%s %s\n", failures == before ? "passed" : "FAILED", test.name);
  }
  return failures ? 1 : 0;
}
