"""Dashboards and alerts held to a real site: every kind of event is made, and what stays empty or silent is named."""
