"""The one view of the cluster: watches feed a store, and each object in it is read once."""
