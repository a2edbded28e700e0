"""The `splitwatt` command: the subcommands that rooms register, and its own that ask a cluster: status, explain, doctor, top."""
