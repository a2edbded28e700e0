"""The connections to the agents themselves: brakes out, samples in."""
