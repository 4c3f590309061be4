"""The agent SDK: take work, give one outcome."""
