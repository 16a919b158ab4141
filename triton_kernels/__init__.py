"""Triton kernels, one file per family. Installed as cnnkern.triton_kernels: Triton ships a package of this name."""
