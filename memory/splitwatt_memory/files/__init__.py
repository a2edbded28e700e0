"""Files of tensors, read in blocks: safetensors, NumPy, GGUF, raw arrays."""
