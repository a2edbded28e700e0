"""Emulated engines, their load, rack meters and kubelet's PodResources, around simulated GPUs."""
