"""Random workflows in plain data, as a YAML or JSON file would have them."""

from typing import Any

from hypothesis import strategies as st
from infinity_matrix_actors.definition import RunWhen

names = st.from_regex(r"[A-Za-hj-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)
durations = st.integers(1, 86_400).flatmap(lambda s: st.sampled_from([s, float(s), f"{s}s", f"{s * 1000}ms"]))
texts = st.text(st.characters(codec="utf-8"), max_size=8)
integers = st.integers(-(1 << 63), (1 << 64) - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid workflow in plain data, some defaults left out, durations in any spelling."""
    ids = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    tasks = []
    for number, id_ in enumerate(ids):
        above = draw(st.lists(st.sampled_from(ids[:number]), unique=True, max_size=3)) if number else []
        optional = {
            "depends_on": st.just(above),
            "config": st.dictionaries(texts, values, max_size=3),
            "timeout": durations,
            "retry_config": st.fixed_dictionaries(
                {}, optional={"max_attempts": st.integers(1, 9), "max_delay": durations}
            ),
            "run_when": st.sampled_from([one.value for one in RunWhen]),
        }
        if above and above[0] not in ("input", "tasks"):
            optional["condition"] = st.just(f"{above[0]}.state == 'completed'")
            required = {"depends_on": optional.pop("depends_on")}
        else:
            required = {}
        tasks.append({"id": id_, "agent": "x", **draw(st.fixed_dictionaries(required, optional=optional))})
    extra = {"timeout": durations, "version": st.sampled_from(["1.10", "no", "1e3"]), "grace": durations}
    return {"name": draw(names), "tasks": tasks, **draw(st.fixed_dictionaries({}, optional=extra))}
