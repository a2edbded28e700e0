"""The law of Splitwatt: pure functions over frozen data.

Nothing here reads a clock, draws a random number, logs or does I/O. Time is a parameter, randomness is the hash of a
UUID, and every rule can be tested without a cluster. Modules that the node agent imports (`contract`, `enforcer`,
`node_guard`, `names`) use the standard library alone; fleet-sized rules work on numpy columns.
"""

__version__ = "0.1.0"
"""Of everything that is released together: distribution, chart, images. Charts cannot ask; a test holds them to it."""
