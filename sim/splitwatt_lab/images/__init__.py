"""Container images: built by a machine's own engine, on a registry's bases or ours, and started to see that they work."""
