"""Coordinator actors, the shards that are their mailboxes, and the process that runs them."""
