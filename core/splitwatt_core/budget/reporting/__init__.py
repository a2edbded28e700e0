"""What people are told of budgets: conditions with their sentences, findings and notes. `reports` is the way in."""
