"""How the simulated world behaves, for all who simulate: requests, a breaker, agents and a store in memory."""
