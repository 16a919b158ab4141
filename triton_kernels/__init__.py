"""Triton kernels, one file per family. Installed as cnnkern.triton_kernels: Triton ships a triton_kernels of its own."""
