"""How the simulated world behaves, for twin, simulator and judge alike: when requests come, and when a breaker trips."""
