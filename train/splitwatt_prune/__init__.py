"""PruneTrain inside a PyTorch job: channels that group lasso emptied are cut while it trains, and what it still needs is told."""
