"""The operator's shell: watches, loops and one pen around the core's law."""
