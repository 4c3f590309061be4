"""Durable agent workflows with nothing but NATS."""
