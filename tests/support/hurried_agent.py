"""The agent with its signs of life SECONDS apart: hurried_agent.py SECONDS, then the agent's own arguments."""

import sys

from splitwatt_agent import node_power
from splitwatt_agent.__main__ import main

if __name__ == "__main__":
    node_power.SIGN_OF_LIFE_S = float(sys.argv.pop(1))  # type: ignore[misc]
    sys.exit(main())
