"""What a GPU does under a cap and a clock: the phase model and the profiles, with the one file of numbers behind them."""
