"""Capacity on real processes: many open executions, what they cost, and how soon another coordinator has them.

`python -m tests.capacity`. Fails when a figure is over its goal.
"""
