"""The node agent: one process per node that sets caps and clocks through NVML, reads them back, and answers in its NodePower."""
