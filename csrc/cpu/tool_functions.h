// The functions that tools.cpp assembles into this instruction set's table; tools.h says what each does.
#pragma once

#include "isa.h"
#include "tools.h"

namespace cnnkern::cpu::CNNKERN_ISA {

void prologue(const Prologue& prologue, DType dtype, const PrologueOperands& operands, int64_t pixels, int64_t c);

void channel_shuffle(const void* x, void* y, int64_t outer, int64_t channels, int64_t groups, int64_t inner,
                     size_t element_size);

void max_pool2d(const PoolShape& shape, DType dtype, const void* x, void* y, int64_t* indices);
void max_pool2d_backward(const PoolShape& shape, DType dtype, const void* dy, const int64_t* indices, void* dx);
void avg_pool2d(const PoolShape& shape, DType dtype, const void* x, void* y);
void avg_pool2d_backward(const PoolShape& shape, DType dtype, const void* dy, void* dx);
void global_avg_pool2d(int64_t n, int64_t pixels, int64_t c, DType dtype, const void* x, void* y);

const char* separable_why_not(const ConvProblem& depthwise, const ConvProblem& pointwise);
const char* separable_rather_not(const ConvProblem& depthwise, const ConvProblem& pointwise);
void separable(const ConvProblem& depthwise, const ConvProblem& pointwise, const SeparableOperands& operands);

}  // namespace cnnkern::cpu::CNNKERN_ISA
