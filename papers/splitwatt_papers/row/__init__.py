"""A row of unsplit servers over weeks: what a power policy does to its power and to its requests."""
