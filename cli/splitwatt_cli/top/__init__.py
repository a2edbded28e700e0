"""`splitwatt top`: budgets, caps, draw, roles and what happens, live."""
