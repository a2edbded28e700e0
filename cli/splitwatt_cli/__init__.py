"""The `splitwatt` command: finds the subcommands that rooms register, and nothing else."""
