"""Who should get which watts and clocks: one signature, three policies, and the arithmetic that they share."""
