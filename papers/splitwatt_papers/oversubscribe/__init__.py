"""More GPUs on the watts of fewer: what a budget has room for under caps that provably fit it, and what users feel."""
