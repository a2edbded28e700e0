"""What command lines an engine of one version takes, recorded from its own parser: `record` runs where the engine is."""
