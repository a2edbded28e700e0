"""`splitwatt simulate`: one design or one scenario, run once."""
