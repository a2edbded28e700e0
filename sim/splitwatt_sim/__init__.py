"""The fleet simulator: clusters in virtual time, thousands of times faster than they run (see docs/fidelity.md)."""
