"""What a GPU is, and what it does under a cap and a clock: facts about hardware, power profiles and the phase model."""
