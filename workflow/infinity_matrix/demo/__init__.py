"""The demo: real rows through three agents, then a real graph at speed, each checked against what it should be."""

from infinity_matrix.demo.main import run

__all__ = ["run"]
