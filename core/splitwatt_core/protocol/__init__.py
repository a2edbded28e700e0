"""What operator and agent owe each other: the contract, the ledger, the enforcer, the node guard.

Standard library alone: the agent imports this room.
"""
