"""One step on its devices, drawn: a lane each, and the exchanges between them as arrows."""

from collections.abc import Iterator, Sequence

from splitnet.measure.summary import Summary
from splitnet.measure.svg import INKS, RIGHT, WIDTH, Drawing, ink, ticks
from splitnet.measure.timeline import Operation, Timeline

LANE, COPIES, GAP, EDGE = 30, 12, 34, 76
"""Heights of a device's compute and copies, the room between devices, and the left margin, in pixels."""


def step_picture(summary: Summary) -> Drawing | None:
    """A lane for each device: what it computes, below that what it copies; an arrow for each exchange."""
    found = summary.timeline
    if found is None or not found.steps or not found.devices:
        return None
    step = found.median_step()
    operations, lanes = found.operations(step), [lane for lane in found.lanes() if lane.step == step]
    begun, over = found.extent(step)
    length = max([(over - begun) / 1000] + [op.start + op.duration for op in operations])
    if length <= 0:
        return None
    clock = "the emulated devices' clocks" if found.emulated else "the devices' time"
    clock = f"{len(found.ranks)} rank{'s' * (len(found.ranks) != 1)}" if found.ranks else clock
    said = [
        f"{found.name(lane.device)} computes {100 * lane.busy / lane.total:.1f} % of it, waits for exchanges"
        f" {100 * lane.exposed / lane.total:.1f} % and is idle {100 * lane.idle / lane.total:.1f} %"
        for lane in lanes
        if lane.total > 0
    ]
    title = f"One training step ({length / 1000:,.1f} ms on {clock})"
    text = " ".join(["; ".join(said) + ".", *about_ranks(found)])
    drawing = Drawing(title, text, WIDTH, 88 + (LANE + COPIES + GAP) * len(found.devices))
    scale = (WIDTH - EDGE - RIGHT) / length
    _ruler(drawing, length, scale)
    for device in range(len(found.devices)):
        _lane(drawing, found, [op for op in operations if op.device == device], device, scale)
    for op in found.crossings(step):
        _arrow(drawing, op, scale)
    kinds = dict.fromkeys(kind(op) for op in sorted(operations, key=lambda op: (op.kind != "compute", op.start)))
    drawing.legend(drawing.height - 14, {name: ink(name) for name in kinds}, EDGE)
    return drawing


def about_ranks(found: Timeline) -> list[str]:
    """Sentences on whose time it is where each process has a lane; none where one process has them all."""
    if not found.ranks:
        return []
    said = ["A collective begins when its rank comes to it: waiting for the others is part of it."]
    if any(rank.device == "cpu" for rank in found.ranks):
        said.append("Ranks on CPUs are drawn in wall time, on cores that they may share.")
    error = max(rank.clock_error for rank in found.ranks) / 1000
    if len({rank.host for rank in found.ranks}) > 1:
        said.append(f"Clocks of hosts were compared before; ranks may stand up to {error:,.3f} ms apart.")
    return said


def lane_names(found: Timeline) -> list[tuple[str, ...]]:
    """The lines beside each lane: its device, or its rank and tower."""
    if not found.ranks:
        return [(name,) for name in found.devices]
    several = any(rank.replica for rank in found.ranks)
    replicas = [(f"replica {rank.replica}",) * several for rank in found.ranks]
    return [
        (name, *replica, f"tower {rank.tower}")
        for name, replica, rank in zip(found.devices, replicas, found.ranks, strict=True)
    ]


def kind(op: Operation) -> str:
    """What its colour stands for."""
    if op.kind == "compute":
        return op.phase or "other"
    return "exchange" if op.kind == "communication" else "input"


def _top(device: int) -> float:
    return 40 + (LANE + COPIES + GAP) * device


def _ruler(drawing: Drawing, length: float, scale: float) -> None:
    drawing.word(12, 24, drawing.title)
    bottom = drawing.height - 52
    for mark in ticks(length / 1000):
        x = EDGE + 1000 * mark * scale
        if x <= WIDTH - RIGHT + 1:
            drawing.rule(x, 36, x, bottom)
            drawing.word(x, bottom + 16, f"{mark:,g} ms" if mark else "0", "middle", "soft")


def _lane(drawing: Drawing, found: Timeline, operations: Sequence[Operation], device: int, scale: float) -> None:
    y = _top(device)
    name, *more = lane_names(found)[device]
    drawing.word(EDGE - 8, y + LANE / 2 + 4, name, "end")
    drawing.word(EDGE - 8, y + LANE + COPIES - 1, more[0] if more else "copies", "end", "soft")
    computed = sorted((op for op in operations if op.kind == "compute"), key=lambda op: op.start)
    for run in _runs(computed, 0.3 / scale):
        first, end = run[0], run[-1].start + run[-1].duration
        what = " ".join(filter(None, (first.row, first.phase))) or first.name
        spent = sum(op.duration for op in run) / 1000
        count = f"{len(run):,} operations" if len(run) > 1 else first.name
        begun = max(first.start, 0.0)  # what goes on from the step before
        x, wide = EDGE + begun * scale, (end - begun) * scale
        drawing.rect(x, y, wide, LANE, ink(first.phase), f"{what}: {count}, {spent:,.3f} ms")
        if first.row and wide > 9 * len(first.row):
            drawing.word(x + wide / 2, y + LANE / 2 + 4, first.row, "middle", "on")
    for op in operations:
        if op.kind != "compute":
            begun = max(op.start, 0.0)
            x, wide = EDGE + begun * scale, (op.start + op.duration - begun) * scale
            drawing.rect(x, y + LANE + 1, wide, COPIES, ink(kind(op)), _told(op))


def _told(op: Operation) -> str:
    before = f" before {op.row}" if op.row else ""
    size = f", {op.bytes:,} bytes" if op.bytes is not None else ""
    return f"{op.name}{before} {op.phase}".rstrip() + f"{size}, {op.duration / 1000:,.3f} ms"


def _runs(computed: Sequence[Operation], near: float) -> Iterator[list[Operation]]:
    """Operations of one row and phase that follow each other closer than can be seen, drawn as one."""
    run: list[Operation] = []
    for op in computed:
        follows = run and op.start - (run[-1].start + run[-1].duration) < near
        if follows and (op.row, op.phase) == (run[-1].row, run[-1].phase):
            run.append(op)
            continue
        if run:
            yield run
        run = [op]
    if run:
        yield run


def _arrow(drawing: Drawing, op: Operation, scale: float) -> None:
    assert op.source is not None
    assert op.target is not None
    below = LANE + COPIES + 1  # an arrow runs in the room between two devices
    down = op.target > op.source
    start, end = _top(op.source) + below * down, _top(op.target) + below * (not down)
    x1, x2 = EDGE + max(op.start, 0.0) * scale, EDGE + (op.start + op.duration) * scale
    drawing.arrow((x1, start), (x2, end), INKS["exchange"], _told(op))
