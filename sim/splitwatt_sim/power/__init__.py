"""The operator's own power law over the fleet engine in virtual time: the core's keeper and enforcers around simulated GPUs."""
