"""The grounds that the end-to-end scenarios are played on: a node of our own, kind, or any cluster, behind one protocol."""
