"""Every subject, stream and bucket name: built and parsed here and nowhere else.

`<cap>` in a fact's subject is a capability: a keyed hash over the subject before it. An agent learns those of its own
attempt from its work message and can guess no other.
"""

from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from infinity_matrix_actors.names import INSTANCE, NAME

CAPABILITY_DIGITS = 16
SUBJECT_BYTES_MAX = 512


def shard_of(execution: str, shards: int) -> int:
    """The shard an execution lives on; the same in every language: crc32 (IEEE) of the id, mod shards."""
    return crc32(execution.encode()) % shards


class FactSubject(NamedTuple):
    """A fact's subject, taken apart. Only the parts of its kind are set.

    A tuple, because there is one for each message of the log and a frozen dataclass takes 3 times as long to make.
    """

    shard: int
    execution: str
    kind: str
    agent: str = ""
    task: str = ""
    attempt: int = 0
    name: str = ""
    id: str = ""
    n: int = 0
    #: The capability is right, or the kind needs none.
    is_genuine: bool = True


class Subjects:
    """All names of one installation; `secret` is needed only by who makes or checks capabilities."""

    def __init__(self, prefix: str = "im", secret: bytes = b"") -> None:
        self.prefix = prefix
        self._secret = secret
        # Copied for each capability: a new keyed hash takes half as long again.
        self._keyed = blake2b(key=secret, digest_size=CAPABILITY_DIGITS // 2)
        self._upper = prefix.upper()
        self._facts = f"{prefix}.fact."
        self._work = f"{prefix}.work."
        self._status = f"{prefix}.status."

    def capability(self, subject: str) -> str:
        """The capability over `subject`: 16 hex digits of keyed BLAKE2b."""
        keyed = self._keyed.copy()
        keyed.update(subject.encode())
        return keyed.hexdigest()

    def derived_id(self, *parts: str) -> str:
        """An execution id that follows from `parts` and that nobody without the secret can guess: 32 hex digits."""
        return blake2b("\0".join(parts).encode(), key=self._secret, digest_size=16).hexdigest()

    # Streams and buckets.

    def facts_stream(self, shard: int) -> str:
        return f"{self._upper}_FACTS_{shard}"

    @property
    def work_stream(self) -> str:
        return f"{self._upper}_WORK"

    @property
    def status_stream(self) -> str:
        return f"{self._upper}_STATUS"

    @property
    def logs_stream(self) -> str:
        return f"{self._upper}_LOGS"

    @property
    def triggers_stream(self) -> str:
        return f"{self._upper}_TRIGGERS"

    @property
    def dead_stream(self) -> str:
        return f"{self._upper}_DEAD"

    def bucket(self, name: str) -> str:
        """The name of a key-value bucket, e.g. `bucket("members")` is IM_MEMBERS."""
        return f"{self._upper}_{name.upper()}"

    # Artifacts, in the server's own object-store format.

    @property
    def artifacts_stream(self) -> str:
        return f"OBJ_{self.bucket('artifacts')}"

    def artifact_chunks(self, nuid: str) -> str:
        """The chunks of one upload; `>` for those of all."""
        return f"$O.{self.bucket('artifacts')}.C.{nuid}"

    def artifact_meta(self, encoded: str) -> str:
        """The record of an artifact, by its name in URL-safe base64; `>` for all."""
        return f"$O.{self.bucket('artifacts')}.M.{encoded}"

    def bucket_stream(self, name: str) -> str:
        """The stream of a key-value bucket."""
        return f"KV_{self.bucket(name)}"

    def checkpoint(self, shard: int, execution: str) -> str:
        """The key of an execution's checkpoint, or with `*` of all those of a shard."""
        return f"$KV.{self.bucket('checkpoints')}.state.{shard}.{execution}"

    @property
    def triggers_floor(self) -> str:
        """The key of the place up to which events were handled."""
        return f"$KV.{self.bucket('checkpoints')}.events"

    def mark(self, shard: int) -> str:
        """The key of a shard's mark."""
        return f"$KV.{self.bucket('checkpoints')}.mark.{shard}"

    # Facts.

    def facts_of_shard(self, shard: int) -> str:
        return f"{self._facts}{shard}.>"

    def facts_of(self, shard: int, execution: str) -> str:
        return f"{self._facts}{shard}.{execution}.>"

    def started(self, shard: int, execution: str) -> str:
        return f"{self._facts}{shard}.{execution}.started"

    def taken(self, shard: int, execution: str, agent: str, task: str, attempt: int) -> str:
        return self._capable(f"{self._facts}{shard}.{execution}.taken.{agent}.{task}.{attempt}")

    def outcome(self, shard: int, execution: str, agent: str, task: str, attempt: int) -> str:
        return self._capable(f"{self._facts}{shard}.{execution}.outcome.{agent}.{task}.{attempt}")

    def due(self, shard: int, execution: str, task: str, attempt: int) -> str:
        return self._capable(f"{self._facts}{shard}.{execution}.due.{task}.{attempt}")

    def signal(self, shard: int, execution: str, name: str, id: str) -> str:
        return f"{self._facts}{shard}.{execution}.signal.{name}.{id}"

    def command(self, shard: int, execution: str, kind: str, id: str) -> str:
        return f"{self._facts}{shard}.{execution}.command.{kind}.{id}"

    def commands_of(self, shard: int, execution: str) -> str:
        """The commands of one execution."""
        return f"{self._facts}{shard}.{execution}.command.>"

    def finished(self, shard: int, execution: str, n: int) -> str:
        return self._capable(f"{self._facts}{shard}.{execution}.finished.{n}")

    def finished_of(self, shard: int, execution: str) -> str:
        """The ends of one execution."""
        return f"{self._facts}{shard}.{execution}.finished.>"

    def all_started(self, shard: int) -> str:
        return f"{self._facts}{shard}.*.started"

    def all_finished(self, shard: int) -> str:
        return f"{self._facts}{shard}.*.finished.>"

    def all_commands(self, shard: int, kind: str) -> str:
        return f"{self._facts}{shard}.*.command.{kind}.*"

    def _capable(self, subject: str) -> str:
        return f"{subject}.{self.capability(subject)}"

    def parse_fact(self, subject: str) -> FactSubject | None:
        """Takes a fact's subject apart; None when it has the shape of no fact."""
        if not subject.startswith(self._facts):
            return None
        tokens = subject[len(self._facts) :].split(".")
        try:
            match tokens:
                case [shard, execution, "outcome" | "taken" as kind, agent, task, attempt, cap]:
                    genuine = self._is_genuine(subject, cap)
                    return FactSubject(int(shard), execution, kind, agent, task, int(attempt), "", "", 0, genuine)
                case [shard, execution, "started"]:
                    return FactSubject(int(shard), execution, "started")
                case [shard, execution, "due", task, attempt, cap]:
                    return FactSubject(
                        int(shard), execution, "due", "", task, int(attempt), is_genuine=self._is_genuine(subject, cap)
                    )
                case [shard, execution, "finished", n, cap]:
                    return FactSubject(
                        int(shard), execution, "finished", n=int(n), is_genuine=self._is_genuine(subject, cap)
                    )
                case [shard, execution, "signal" | "command" as kind, name, id]:
                    return FactSubject(int(shard), execution, kind, name=name, id=id)
        except ValueError:
            return None
        return None

    def _is_genuine(self, subject: str, cap: str) -> bool:
        # Readers without the secret (clients) leave the check to the coordinators: a forged subject is one the
        # coordinators ignored, so clients compare what they fold with the secret-free rule below.
        return not self._secret or self.capability(subject[: -len(cap) - 1]) == cap

    # Work, status, logs, the rest.

    def work(self, agent: str, execution: str, task: str, attempt: int) -> str:
        return f"{self._work}{agent}.{execution}.{task}.{attempt}"

    def work_of_agent(self, agent: str) -> str:
        return f"{self._work}{agent}.>"

    def work_of_attempt(self, execution: str, task: str, attempt: int) -> str:
        """The filter that purges an attempt's work, whatever its agent."""
        return f"{self._work}*.{execution}.{task}.{attempt}"

    def tombstone(self, execution: str, task: str, attempt: int) -> str:
        return self.work("im-closed", execution, task, attempt)

    def message_id(self, execution: str, task: str, attempt: int) -> str:
        """The Nats-Msg-Id of an attempt's work."""
        return f"{execution}.{task}.{attempt}"

    def parse_work(self, subject: str) -> tuple[str, str, str, int] | None:
        """(agent, execution, task, attempt) of a work subject."""
        tokens = subject[len(self._work) :].split(".") if subject.startswith(self._work) else []
        if len(tokens) != 4 or not tokens[3].isdigit():
            return None
        return tokens[0], tokens[1], tokens[2], int(tokens[3])

    def status(self, workflow: str, execution: str, task: str | None, state: str, attempt: int = 0) -> str:
        subject = f"{self._status}{workflow}.{execution}.{task or '_'}.{state}"
        return f"{subject}.{attempt}" if attempt else subject

    def status_of(self, execution: str) -> str:
        """Transitions of the execution itself, not of its tasks."""
        return f"{self._status}*.{execution}._.*"

    @property
    def all_progress(self) -> str:
        """Signs of progress of every running attempt."""
        return f"{self._status}*.*.*.progress.*"

    def parse_progress(self, subject: str) -> tuple[str, str, int] | None:
        """(execution, task, attempt) of a sign of progress."""
        tokens = subject[len(self._status) :].split(".") if subject.startswith(self._status) else []
        if len(tokens) != 5 or tokens[3] != "progress" or not tokens[4].isdigit():
            return None
        return tokens[1], tokens[2], int(tokens[4])

    def all_ends(self, state: str) -> str:
        """Transitions of every execution itself to `state`."""
        return f"{self._status}*.*._.{state}"

    def execution_of_status(self, subject: str) -> str:
        """The execution a status subject is about."""
        return subject[len(self._status) :].split(".", 2)[1]

    @property
    def all_status(self) -> str:
        return f"{self._status}>"

    def logs(self, workflow: str, execution: str, task: str) -> str:
        return f"{self.prefix}.logs.{workflow}.{execution}.{task}"

    def logs_of(self, execution: str) -> str:
        return f"{self.prefix}.logs.*.{execution}.>"

    @property
    def all_logs(self) -> str:
        return f"{self.prefix}.logs.>"

    def trigger(self, event: str) -> str:
        return f"{self.prefix}.trigger.{event}"

    @property
    def all_triggers(self) -> str:
        return f"{self.prefix}.trigger.>"

    def dead(self, agent: str, execution: str, task: str, attempt: int) -> str:
        return f"{self.prefix}.dead.{agent}.{execution}.{task}.{attempt}"

    @property
    def all_dead(self) -> str:
        return f"{self.prefix}.dead.>"

    def dead_of(self, agent: str = "*", execution: str = "*", task: str = "*", attempt: int | None = None) -> str:
        """The dead letters that are meant; what is not given is any."""
        return f"{self.prefix}.dead.{agent}.{execution}.{task}.{'*' if attempt is None else attempt}"

    def parse_dead(self, subject: str) -> tuple[str, str, str, int] | None:
        """(agent, execution, task, attempt) of a dead letter's subject."""
        tokens = subject.split(".")
        if len(tokens) != 6 or not subject.startswith(f"{self.prefix}.dead.") or not tokens[5].isdigit():
            return None
        return tokens[2], tokens[3], tokens[4], int(tokens[5])

    def cancel(self, execution: str, task: str | None = None) -> str:
        return f"{self.prefix}.cancel.{execution}" + (f".{task}" if task else "")

    @property
    def all_cancels(self) -> str:
        return f"{self.prefix}.cancel.>"

    def parse_cancel(self, subject: str) -> tuple[str, str | None]:
        """(execution, task or None) of a cancel subject."""
        tokens = subject[len(self.prefix) + len(".cancel.") :].split(".")
        return tokens[0], tokens[1] if len(tokens) > 1 else None

    def api(self, verb: str) -> str:
        return f"{self.prefix}.api.{verb}"


def is_name(value: str) -> bool:
    """Whether `value` may stand as an id in a subject."""
    return NAME.fullmatch(value) is not None


def is_task_name(value: str) -> bool:
    """Whether `value` may stand as a task in a subject: an id, or one with the system's own suffix."""
    return INSTANCE.fullmatch(value) is not None
