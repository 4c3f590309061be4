"""The benchmark: the engine, and beside it the limit that bare nats-py sets on the same machine."""
