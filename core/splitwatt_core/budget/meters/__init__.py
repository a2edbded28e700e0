"""What meters tell: what can be believed of it, what it teaches, and how hard a budget gives watts back because of it."""
