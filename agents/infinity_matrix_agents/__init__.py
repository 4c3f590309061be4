"""The agent SDK: take work, give one outcome."""

from infinity_matrix_agents.agent import Agent, InvalidAgent, agents_of_this_process
from infinity_matrix_agents.failure import Failure
from infinity_matrix_agents.runner import AgentRunner
from infinity_matrix_agents.work import Work

__all__ = ["Agent", "AgentRunner", "Failure", "InvalidAgent", "Work", "agents_of_this_process"]
