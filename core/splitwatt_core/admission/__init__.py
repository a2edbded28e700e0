"""Which pods may leave their gate, and in which leaf budget."""
