"""Of cases that are alike, `make fast` runs some: one of each kind."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], *those: Any) -> list[Any]:
    """The same of `make test`, of which the others are `make soak`'s."""
    every = list(cases)
    assert all(case in every for case in those)
    return [
        pytest.param(*(case if isinstance(case, tuple) else [case]), marks=() if case in those else pytest.mark.soak)
        for case in every
    ]


def quick(cases: Iterable[Any], *those: Any) -> list[Any]:
    """All cases, for pytest.mark.parametrize, of which those alone are not slow."""
    every = list(cases)
    assert all(case in every for case in those)
    return [
        pytest.param(*(case if isinstance(case, tuple) else [case]), marks=() if case in those else pytest.mark.slow)
        for case in every
    ]
