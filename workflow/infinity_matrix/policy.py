"""What a workflow says about failures: actions as plain data, or a function of the user's that answers with actions.

The same grammar for both, so that what a function answers is checked as strictly as what stands in a definition.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infinity_matrix_actors.definition import ASK_ACTION
from infinity_matrix_actors.document import ActionDocument
from infinity_matrix_actors.document_model import ActionKind
from infinity_matrix_actors.document_problem import explain
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_bus.codec import encode
from pydantic import ValidationError

#: Of one answer; a larger one would travel as a reference, which nobody resolves who decides by it.
ACTIONS_MAX = 100
ANSWER_BYTES_MAX = 64 * 1024
#: An action, several, or a function that answers with them, sync or async; None is what is always done.
Policy = Callable[..., Any] | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


def policy_documents(policy: Policy, where: str) -> list[ActionDocument] | None:
    """What a definition holds of a policy; of a function only that it is to be asked. Raises InvalidDefinition."""
    if policy is None:
        return None
    if callable(policy):
        return [ActionDocument(action=ActionKind.ASK)]
    asks = {"action": ASK_ACTION}
    return [_parsed(asks if action == {"ask": True} else action, where) for action in _listed(policy, where)]


def policy_data(actions: Sequence[ActionDocument] | None) -> list[dict[str, Any]] | None:
    """A definition's policy as plain data."""
    return None if actions is None else [_plain(action) for action in actions]


def checked_actions(answer: Any, where: str) -> list[dict[str, Any]]:
    """The actions a function answered with, none for None; raises InvalidDefinition for anything else."""
    actions = [] if answer is None else [_parsed(action, where) for action in _listed(answer, where)]
    if any(action.action is ActionKind.ASK for action in actions):
        raise InvalidDefinition("'ask' is no answer", where=where, hint=_HINT)
    listed = [_plain(action) for action in actions]
    if len(encode(listed, where)) > ANSWER_BYTES_MAX:
        raise InvalidDefinition(f"it has more than {ANSWER_BYTES_MAX} bytes", where=where, hint="shorten its texts")
    return listed


_HINT = "actions: retry, skip, fail, compensate, notify; such as {'action': 'retry', 'max_attempts': 3}"


def _listed(value: Any, where: str) -> list[Any]:
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(one, Mapping) for one in listed):
        raise InvalidDefinition(f"{value!r:.100} is neither an action nor a list of actions", where=where, hint=_HINT)
    if len(listed) > ACTIONS_MAX:
        raise InvalidDefinition(f"{len(listed)} actions, at most {ACTIONS_MAX}", where=where, hint="leave some out")
    return list(listed)


def _parsed(action: Mapping[str, Any], where: str) -> ActionDocument:
    try:
        return ActionDocument.model_validate(dict(action))
    except ValidationError as error:
        problem = explain(error, ActionDocument, action, "an action")
        inner = f"{where}.{problem.where}" if problem.where != "an action" else where
        raise InvalidDefinition(problem.problem, where=inner, hint=problem.hint) from None


def _plain(action: ActionDocument) -> dict[str, Any]:
    others = action.model_dump(exclude={"action"}, exclude_none=True, exclude_defaults=True)
    return {"action": str(action.action), **others}
