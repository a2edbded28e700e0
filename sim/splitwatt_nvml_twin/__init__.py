"""Simulated GPUs behind a real NVML: a libnvidia-ml.so.1 in C, and the Python handle that plays hardware and workload."""
