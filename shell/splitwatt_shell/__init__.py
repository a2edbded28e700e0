"""What every process of ours has, once: an address, /metrics and /healthz, parts that end together, bounded waits."""
