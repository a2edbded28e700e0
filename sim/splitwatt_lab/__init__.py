"""A datacenter on one machine: a real control plane, the shells as processes, a judge, demo, faults and benchmarks."""
