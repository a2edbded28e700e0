"""The API `splitwatt.io/v1alpha1`: pydantic models, the schemas made from them, and their way to and from the core."""
