"""`splitwatt doctor`: every known way in which an installation goes wrong, each with its fix."""
