"""`splitwatt support-bundle`: what somebody else needs to see who cannot log in, and nothing that opens a door."""
