"""`splitwatt faults`: every fault that is named in docs/safety.md, done to real processes, and judged."""
