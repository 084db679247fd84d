"""The public names: `ts.capture`, and `ts.texts.judge` where a name is in a namespace only."""

import tl_steer as ts

NAMESPACES = ("analysis", "errors", "evaluation", "exchange", "organisms", "plots", "prompts", "texts")
ELSEWHERE = (
    "directions.factor_directions", "directions.without_factors", "models.ChatFormat", "models.ModelIdentity",
    "models.restore_layout", "positions.Positions", "positions.parse_positions", "sweeps.ray_executor",
)  # fmt: skip


def _named(name):
    module, _, attribute = name.rpartition(".")
    return getattr(getattr(ts, module), attribute)


TOP_LEVEL = {name: getattr(ts, name) for name in ts.__all__ if name not in NAMESPACES}
PUBLIC = TOP_LEVEL | {
    f"{space}.{name}": getattr(getattr(ts, space), name)
    for space in NAMESPACES
    for name in getattr(ts, space).__all__
    if space == "plots" or name not in TOP_LEVEL
}
PUBLIC |= {name: _named(name) for name in ELSEWHERE}
