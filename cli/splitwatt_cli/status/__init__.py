"""`splitwatt status`: one screen, what is wrong first."""
