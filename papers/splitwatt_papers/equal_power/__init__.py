"""Splitwise at equal provisioned power, in the units of the paper."""
