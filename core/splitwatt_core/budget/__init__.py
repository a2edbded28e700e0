"""A tree of budgets kept within its limits: facts in, one plan per step out. `keeper` is the way in; what meters tell and what
people are told are rooms of their own."""
