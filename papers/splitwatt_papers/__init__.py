"""What only reproduces published results: reference models, rows, rooms and the pages below docs/reproduce."""
