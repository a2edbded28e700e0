"""Servers: timing tables, power under caps, designs."""
