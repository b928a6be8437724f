"""CUDA sources: the .cu and .cuh files in this folder, packaged as gpucnn.kernels."""
