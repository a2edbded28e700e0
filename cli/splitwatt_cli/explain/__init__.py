"""`splitwatt explain`: why a cap, a budget or a cluster is as it is, what waits for what, and what would have to change."""
