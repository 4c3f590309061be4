"""Durable agent workflows with nothing but NATS."""

from infinity_matrix_actors.errors import (
    ExecutionExists,
    ExecutionFailed,
    InfinityMatrixError,
    InvalidDefinition,
    InvalidInput,
    NoCoordinator,
    NotInstalled,
    PayloadNotEncodable,
    PayloadTooLarge,
    StorageUnavailable,
    UnknownExecution,
    UnknownWorkflow,
    Unreachable,
    WorkflowPaused,
    WrongState,
)

from infinity_matrix.local import connect, local

__all__ = [
    "ExecutionExists",
    "ExecutionFailed",
    "InfinityMatrixError",
    "InvalidDefinition",
    "InvalidInput",
    "NoCoordinator",
    "NotInstalled",
    "PayloadNotEncodable",
    "PayloadTooLarge",
    "StorageUnavailable",
    "UnknownExecution",
    "UnknownWorkflow",
    "Unreachable",
    "WorkflowPaused",
    "WrongState",
    "connect",
    "local",
]
