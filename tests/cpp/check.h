// A test is TEST(name) { ... CHECK(condition); ... }, in any file; main.cpp runs all of them, and a failed check says
// where and goes on. Checks may be made from any thread.
#pragma once

#include <sstream>
#include <string>
#include <vector>

namespace cnnkern::testing {

struct Test {
  const char* name;
  void (*run)();
};

std::vector<Test>& tests();
void report(const char* file, int line, const std::string& failure);

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

template <class A, class B>
void check_equal(const A& a, const B& b, const char* text, const char* file, int line) {
  if (a == b) return;
  std::ostringstream failure;
  failure << text << ": " << a << " and " << b;
  report(file, line, failure.str());
}

// The message of the exception that `call` throws, or "nothing".
template <class Exception, class Call> std::string thrown(const Call& call) {
  try {
    call();
  } catch (const Exception& error) {
    return error.what();
  }
  return "nothing";
}

}  // namespace cnnkern::testing

#define TEST(name)                                                              \
  static void name();                                                           \
  static const ::cnnkern::testing::Registration registered_##name{#name, name}; \
  static void name()

#define CHECK(condition) \
  if (!(condition)) ::cnnkern::testing::report(__FILE__, __LINE__, #condition)

#define CHECK_EQUAL(a, b) ::cnnkern::testing::check_equal(a, b, #a " == " #b, __FILE__, __LINE__)
