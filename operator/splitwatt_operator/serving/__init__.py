"""The serving loop: every InferenceCluster becomes its objects, its pods pass the power gate, its status says how it stands."""
