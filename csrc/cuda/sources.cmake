# The one list of sources of the CUDA kernels, for nvcc and for the host build of tests/simt.
set(CUDA_KERNELS
  csrc/cuda/depthwise.cu)
set(CUDA_HOST_SOURCES  # without which there is no list of kernels
  csrc/conv_problem.cpp
  csrc/cuda/kernel_list.cpp)
set(CUDA_DRIVER csrc/cuda/driver.cpp)  # an executable
