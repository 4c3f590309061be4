"""What is wrong with the shape of a document, in the words of who wrote it: pydantic's errors, explained."""

import typing
from collections.abc import Iterable
from enum import Enum

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.suggestion import did_you_mean


def explain(error: ValidationError, model: type[BaseModel], value: object, what: str) -> InvalidDefinition:
    """Answers the first problem of `error`, an unknown field before all others: it is mostly why another is missing."""
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    place = first["loc"]
    where = path(place)
    field = str(place[-1]) if place else ""
    match first["type"]:
        case "extra_forbidden":
            known = _model_at(model, place[:-1]).model_fields
            hint = did_you_mean(field, known) or f"known fields: {', '.join(known)}"
            return InvalidDefinition(f"unknown field {field!r}", where=where, hint=hint)
        case "missing":
            return InvalidDefinition(f"the field {field!r} is missing", where=path(place[:-1]) or what)
        case "invalid_definition":
            context = first.get("ctx", {})
            within = (where + context["deeper"]).lstrip(".")
            return InvalidDefinition(context["problem"], where=within, hint=context["hint"])
        case "model_type" | "model_attributes_type":
            problem = f"{what} is a mapping of fields" if not place else "a mapping of fields must stand here"
            return InvalidDefinition(f"{problem}, not {_shown(first['input'])}", where=where)
    problem, hint = _wrong_value(first, field, _model_at(model, place[:-1]))
    return InvalidDefinition(problem, where=where or what, hint=hint)


def path(place: Iterable[int | str]) -> str:
    """Answers `tasks[2].timeout` for ("tasks", 2, "timeout")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def _wrong_value(error: ErrorDetails, field: str, model: type[BaseModel]) -> tuple[str, str]:
    value = error["input"]
    match error["type"]:
        case "string_type":
            return f"{_shown(value)} is not text", _quote_hint(value)
        case "list_type":
            return f"{_shown(value)} is not a list", f"write [{value}]" if isinstance(value, str) else ""
        case "dict_type":
            return f"{_shown(value)} is not a mapping", "leave the field out" if value is None else ""
        case "int_type" | "float_type":
            return f"{_shown(value)} is not a{'n integer' if error['type'] == 'int_type' else ' number'}", ""
        case "enum":
            choices = _choices(model, field)
            return f"{_shown(value)} is not one of {', '.join(choices)}", did_you_mean(str(value), choices)
    message = error["msg"].removeprefix("Input should be ")
    return f"{_shown(value)} is not right: it should be {message}", ""


def _quote_hint(value: object) -> str:
    if value is None:
        return "leave the field out, or write text"
    if isinstance(value, bool | int | float):
        return "put it in quotes" + (": without them 1.10 and 1.1 are one number" if isinstance(value, float) else "")
    return ""


def _choices(model: type[BaseModel], field: str) -> list[str]:
    annotation = model.model_fields[field].annotation
    return [str(member.value) for member in annotation] if _is_enum(annotation) else []


def _is_enum(annotation: object) -> typing.TypeGuard[type[Enum]]:
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def _model_at(model: type[BaseModel], place: Iterable[int | str]) -> type[BaseModel]:
    """Answers the model of the mapping at `place`, by following the fields' annotations."""
    for part in place:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        annotation = model.model_fields[part].annotation
        for candidate in (annotation, *typing.get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very large integer"  # Python refuses to write out the largest
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
