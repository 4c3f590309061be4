"""The fields of a document: the grammar of each kind of value a user writes, with its place in the JSON Schema."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import PydanticCustomError

from infinity_matrix_actors.duration import DURATION_MAX_S, DURATION_PATTERN, parse_duration, parse_instant
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.names import check_name
from infinity_matrix_actors.plain import plain, plain_text
from infinity_matrix_actors.schema import check_schema

#: With the prefix before it an event's subject stays within the 512 bytes of a subject.
EVENT_LENGTH_MAX = 256
SERVICE_SCHEME = "service:"
#: A literal subject of NATS: printable tokens, no wildcards.
_SERVICE_PATTERN = r"service:[^\s.*>$][^\s.*>]*(\.[^\s.*>]+)*"
SERVICE_LENGTH_MAX = 200

_NAME_PATTERN = "(?!im-)[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_TOKEN_PATTERN = rf"({_NAME_PATTERN}|\*)"
_SHARE_PATTERN = "([0-9]{1,3}(?:\\.[0-9]+)?)%"
_SHARE = re.compile(_SHARE_PATTERN)


def _checked(check: Callable[[Any, str], Any]) -> Callable[[Any, ValidationInfo], Any]:
    """Answers `check(value, field name)` as a validator that pydantic can give a place to."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        field = info.field_name or "value"
        try:
            return check(value, field)
        except InvalidDefinition as problem:
            deeper = problem.where.removeprefix(field)
            context = {"problem": problem.problem, "hint": problem.hint, "deeper": deeper}
            raise PydanticCustomError("invalid_definition", "{problem}", context) from problem

    return validate


def _check_event(event: str, field: str) -> str:
    if len(event) > EVENT_LENGTH_MAX:
        raise InvalidDefinition(f"an event has at most {EVENT_LENGTH_MAX} characters", where=field)
    tokens = event.split(".")
    for number, token in enumerate(tokens):
        if token == ">" and number < len(tokens) - 1:
            raise InvalidDefinition(
                f"in the event {event!r} something follows '>'", where=field, hint="'>' is the last"
            )
        if token not in ("*", ">"):
            check_name(f"in the event {event!r} the token", token)
    return event


def _check_agent(agent: str, field: str) -> str:
    if not agent.startswith(SERVICE_SCHEME):
        return check_name("the agent name", agent)
    if len(agent) > SERVICE_LENGTH_MAX or re.fullmatch(_SERVICE_PATTERN, agent) is None:
        hint = "service: and a subject without wildcards, such as service:prices.quote"
        raise InvalidDefinition(f"{agent!r:.100} names no subject", where=field, hint=hint)
    return agent


def _check_share(value: object, field: str) -> float | str:
    """How many may fail: a number, or text such as `10%`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (share := _SHARE.fullmatch(value)) and float(share[1]) <= 100:
        return value
    raise InvalidDefinition(f"{value!r:.100} is no number of failures", where=field, hint="such as 3, or '10%'")


def _as_schema(value: object, field: str) -> Any:
    """A JSON Schema as plain data; a pydantic model stands for its own."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        try:
            value = value.model_json_schema()
        except PydanticInvalidForJsonSchema as problem:
            hint = "give the fields types that JSON has, or a JSON Schema"
            raise InvalidDefinition(f"the model has no JSON Schema: {problem}", where=field, hint=hint) from None
    if not isinstance(value, dict):
        raise InvalidDefinition(
            f"{value!r:.100} is no schema", where=field, hint="a pydantic model, or a JSON Schema as a mapping"
        )
    schema = plain(value, field)
    check_schema(schema, field)
    return schema


def listed(value: Any) -> Any:
    """Tuples are as good as lists."""
    return list(value) if isinstance(value, tuple) else value


def listed_text(value: Any) -> Any:
    """One text is as good as a list of one."""
    return [value] if isinstance(value, str) else listed(value)


_KINDS = {"name": "the workflow name", "id": "the task id", "agent": "the agent name", "depends_on": "the task id"}
_DURATION_TEXT = {"type": "string", "pattern": DURATION_PATTERN}


def _duration_schema(bound: str) -> WithJsonSchema:
    number = {"type": "number", bound: 0, "maximum": DURATION_MAX_S}
    return WithJsonSchema(
        {"anyOf": [number, _DURATION_TEXT], "description": "Seconds, or text such as 90s, 5m, 1h30m."}
    )


Name = Annotated[
    str,
    AfterValidator(_checked(lambda value, field: check_name(_KINDS.get(field, field), value))),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME_PATTERN}$"}),
]
AgentName = Annotated[
    str,
    AfterValidator(_checked(_check_agent)),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{_NAME_PATTERN}$"},
                {"type": "string", "maxLength": SERVICE_LENGTH_MAX, "pattern": f"^{_SERVICE_PATTERN}$"},
            ]
        }
    ),
]
Share = Annotated[
    int | str,
    BeforeValidator(_checked(_check_share)),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": f"^{_SHARE_PATTERN}$"}]}
    ),
]
Schema = Annotated[
    dict[str, Any],
    BeforeValidator(_checked(_as_schema)),
    WithJsonSchema({"type": "object", "description": "A JSON Schema (2020-12)."}),
]
Text = Annotated[str, AfterValidator(_checked(plain_text))]
Seconds = Annotated[float, BeforeValidator(_checked(parse_duration)), _duration_schema("exclusiveMinimum")]
SecondsOrZero = Annotated[
    float,
    BeforeValidator(_checked(lambda value, field: parse_duration(value, field, zero_allowed=True))),
    _duration_schema("minimum"),
]
Event = Annotated[
    str,
    AfterValidator(_checked(_check_event)),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": EVENT_LENGTH_MAX,
            "pattern": rf"^({_TOKEN_PATTERN}(\.{_TOKEN_PATTERN})*(\.>)?|>)$",
            "description": "Dotted tokens; '*' stands for one token, '>' at the end for all that follow.",
        }
    ),
]
Instant = Annotated[
    float,
    BeforeValidator(_checked(lambda value, field: parse_instant(value, field))),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "Such as 2026-12-24T18:00:00+01:00."}),
]
PlainMap = Annotated[dict[str, Any], BeforeValidator(_checked(lambda value, field: plain(value, field)))]
# -0.0 would have another canonical form than 0.
Number = Annotated[float, AfterValidator(lambda value: value + 0.0)]


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
