"""How often an attempt was begun again, from the marks of its agents: what tells poison from work handed back."""

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects

log = get_logger("infinity_matrix.coordinator")


async def begun_again(
    session: Session, subjects: Subjects, workflow: str, execution: str, task: str, attempt: int
) -> int | None:
    """How often it was begun after its first delivery and not handed back; None when that cannot be read."""

    def marks(state: str) -> str:
        return subjects.status(workflow, execution, task, state, attempt)

    try:
        # One subject for each mark, so the server counts them: nothing is read.
        request = f"STREAM.INFO.{subjects.status_stream}"
        info = await JetStreamApi(session).call(request, {"subjects_filter": marks("*")})
    except InfinityMatrixError as error:
        log.info("begins_not_counted", execution=execution, task=task, reason=str(error))
        return None
    counts = info["state"].get("subjects") or {}
    return max(0, int(counts.get(marks("begun"), 0)) - int(counts.get(marks("returned"), 0)))
