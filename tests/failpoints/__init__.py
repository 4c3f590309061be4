"""A coordinator or an agent is killed between any two of its messages, and nothing is lost or done again."""
