// What the functions of the C interface share: how an exception becomes a text, and how long a text lasts.
#pragma once

#include <exception>
#include <string>

#include "kernel.h"

namespace cnnkern::cuda {

// Of the calling thread: what the last call returned, and why the last one that failed did.
inline thread_local std::string last_answer, last_error;

inline const char* kept(std::string text) {
  last_answer = std::move(text);
  return last_answer.c_str();
}

// What body returns, or null with the reason kept.
template <class Body> auto caught(const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception& exception) {
    last_error = exception.what();
    return nullptr;
  }
}

// Null, or why body failed.
template <class Body> const char* error_of(const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& exception) {
    last_error = exception.what();
    return last_error.c_str();
  }
}

// The bits of cnnkern/flags.py.
inline Flags flags_of(int64_t bits, int capability) {
  return {.strict = (bits & 1) != 0,
          .deterministic = (bits & 2) != 0,
          .tf32 = (bits & 4) != 0,
          .unaligned = (bits & 8) != 0,
          .capability = capability};
}

}  // namespace cnnkern::cuda
