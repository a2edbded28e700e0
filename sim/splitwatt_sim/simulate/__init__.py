"""`splitwatt simulate`: one scenario, run once."""
