"""Names that the training step writes into a trace and the timeline reads back."""

DATA = "splitnet.data"
FORWARD = "splitnet.forward"
BACKWARD = "splitnet.backward"
OPTIMIZER = "splitnet.optimizer"

_EXCHANGE, _ROW = "splitnet.exchange.", "splitnet.row."


def exchange(row: str) -> str:
    """Span around the exchange in front of a row."""
    return _EXCHANGE + row


def exchange_of(span: str) -> str | None:
    """The row whose exchange a span is around; None for another span."""
    return span.removeprefix(_EXCHANGE) if span.startswith(_EXCHANGE) else None


def row(name: str) -> str:
    """Span around a row's forward pass on all towers hosted here, with the exchange in front of it."""
    return _ROW + name


def row_of(span: str) -> str | None:
    """The row that a span is around; None for another span."""
    return span.removeprefix(_ROW) if span.startswith(_ROW) else None
