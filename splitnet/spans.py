"""Names that the training step writes into a trace and the timeline reads back."""

DATA = "splitnet.data"
FORWARD = "splitnet.forward"
BACKWARD = "splitnet.backward"
OPTIMIZER = "splitnet.optimizer"


def exchange(row: str) -> str:
    """Span around the exchange in front of a row."""
    return f"splitnet.exchange.{row}"
