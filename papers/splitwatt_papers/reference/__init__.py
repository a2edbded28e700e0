"""splitwise-sim's rules, reproduced to the last bit: slow, and for comparison only."""
