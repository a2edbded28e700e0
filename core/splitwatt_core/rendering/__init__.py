"""The ordinary Kubernetes objects of an InferenceCluster, as a pure function of it."""
