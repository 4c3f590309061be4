"""The check itself: every rule over a whole history. Pure."""

from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.plan import Plan

from infinity_matrix_coordinator.verification import (
    child_rules,
    end_rules,
    graph_rules,
    journal_rules,
    log_rules,
    saga_rules,
)
from infinity_matrix_coordinator.verification.account import Account, asks_artifacts, is_understood
from infinity_matrix_coordinator.verification.history import Entry, History, Violation
from infinity_matrix_coordinator.verification.instance_rules import check_instances


def verify(history: History, *, has_all_shards: bool = True) -> list[Violation]:
    """Everything that was not allowed, in the order of executions; empty when all is well.

    An execution whose log broke a rule has no one state, so what it came to is then not compared. Children are held
    against their parents only where `has_all_shards`.
    """
    plans = {digest: _plan(history, digest) for digest in history.definitions}
    found: list[Violation] = []
    accounts: dict[str, Account] = {}
    for execution, facts in history.facts.items():
        account, broken = _of_execution(history, execution, facts, plans)
        found += broken
        if account is not None and not broken and not account.is_reopened:
            accounts[execution] = account
    starts = {execution: history.started(execution) for execution in history.facts}
    found += log_rules.check_causes(
        {execution: started for execution, started in starts.items() if started is not None}
    )
    found += journal_rules.check_agents_journal(history)
    found += journal_rules.check_clients_journal(history, accounts)
    found += journal_rules.check_leftovers(history)
    if has_all_shards:
        is_whole = history.is_over and history.is_whole
        found += child_rules.check_children(child_rules.kin_of(history), history.queue_read_at, is_whole=is_whole)
    return found


def partly_checked(history: History) -> list[str]:
    """The executions checked task by task only: their definition is not there, or does what no account covers yet."""
    return [
        execution
        for execution, facts in history.facts.items()
        if (started := history.started(execution)) is not None
        and (
            (definition := history.definitions.get(started.definition)) is None or not is_understood(definition, facts)
        )
    ]


def _of_execution(
    history: History, execution: str, facts: list[Entry], plans: dict[str, Plan | None]
) -> tuple[Account | None, list[Violation]]:
    found = [*log_rules.check_starts_and_ends(history, execution, facts), *log_rules.check_outcomes(execution, facts)]
    started = history.started(execution)
    plan = plans.get(started.definition) if started is not None else None
    if started is None or started.skipped or plan is None:
        return None, found
    found += log_rules.check_agents(execution, facts, plan.definition)
    account = None
    if is_understood(plan.definition, facts):
        account = Account(facts, plan)
        found += graph_rules.check_tasks(account)
        found += graph_rules.check_deadline(account)
        found += saga_rules.check_saga(account)
        if not found:
            found += end_rules.check_end(account)
    else:
        found += check_instances(execution, facts, plan)
    is_foldable = not asks_artifacts(plan.definition, facts)
    if is_foldable and all(violation.invariant in ("I1", "I2") for violation in found):
        found += end_rules.check_fold(facts, plan, account)
    return account, found


def _plan(history: History, digest: str) -> Plan | None:
    try:
        return Plan.of(history.definitions[digest], digest)
    except InvalidDefinition:
        return None
