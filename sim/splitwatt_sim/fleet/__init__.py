"""The fast fleet engine of our own rules, and the plain Python version that tests hold it to."""
