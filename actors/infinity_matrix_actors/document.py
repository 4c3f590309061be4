"""The door to definitions: what users write, in Python, YAML or JSON, and how it becomes a `WorkflowDefinition`.

A document is checked twice: its shape as soon as a part of it is made (`parse_task` and its siblings), its meaning as
a whole by `define`. Behind the door nothing is checked again. Every failure is an `InvalidDefinition` that says where.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from infinity_matrix_actors.document_definition import checked, define
from infinity_matrix_actors.document_field import Document
from infinity_matrix_actors.document_model import ActionDocument, TaskDocument, TriggerDocument, WorkflowDocument
from infinity_matrix_actors.document_problem import explain

__all__ = [
    "ActionDocument",
    "TaskDocument",
    "TriggerDocument",
    "WorkflowDocument",
    "checked",
    "define",
    "json_schema",
    "parse_document",
    "parse_task",
    "parse_trigger",
]

_Model = TypeVar("_Model", bound=Document)


def _parse(model: type[_Model], value: object, what: str) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise explain(error, model, value, what) from None


def parse_document(value: Mapping[str, Any]) -> WorkflowDocument:
    """Answers the document that `value` is; raises `InvalidDefinition` for what has the wrong shape.

    Tasks and triggers may be mappings or documents already.
    """
    return _parse(WorkflowDocument, value, "a workflow")


def parse_task(**fields: Any) -> TaskDocument:
    """Answers the task with these fields; raises `InvalidDefinition` for what has the wrong shape."""
    return _parse(TaskDocument, fields, "a task")


def parse_trigger(**fields: Any) -> TriggerDocument:
    """Answers the trigger with these fields; raises `InvalidDefinition` for what has the wrong shape."""
    return _parse(TriggerDocument, fields, "a trigger")


def json_schema() -> dict[str, Any]:
    """Answers the JSON Schema (2020-12) of a workflow document; docs/reference has it as a file."""
    schema = WorkflowDocument.model_json_schema()
    # At least one task, as `define` demands; the model itself also serves a workflow that is still being put together.
    schema["properties"]["tasks"]["minItems"] = 1
    schema["required"] = ["name", "tasks"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Infinity Matrix workflow"}
