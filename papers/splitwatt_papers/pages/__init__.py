"""The pages below docs/reproduce, each written by one command."""
