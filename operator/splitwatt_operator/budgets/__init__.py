"""The budget loop: one decision a second, performed and shown."""
