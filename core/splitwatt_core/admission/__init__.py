"""Which pods may leave their gate, and in which leaf budget: facts, survey, plan, and what is assumed until it is seen."""
