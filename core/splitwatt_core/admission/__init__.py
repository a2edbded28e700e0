"""Which pods may leave their gate, and in which leaf budget: pods, site, snapshot, plan, and what is assumed until it is seen."""
