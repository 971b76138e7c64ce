"""One component in memory at a time: text encoders, then the UNet, then the VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .heap import return_freed
from .session import Session

if TYPE_CHECKING:
    import torch


class Turns:
    """Sessions of which one is open: a run of another closes it first, and its memory goes back to the system.

    open_session: by the component's name.
    """

    def __init__(self, open_session: Callable[[str], Session]) -> None:
        self._open_session = open_session
        self._open: tuple[str, Session] | None = None

    def session(self, name: str) -> TurnSession:
        """A session that is open when it runs. It is opened here once, to see that it can be and what it is."""
        real = self.opened(name)
        return TurnSession(real.inputs, real.outputs, real.device, real.precision, real.tensor_device, name, self)

    def opened(self, name: str) -> Session:
        """The engine's session; whoever keeps it keeps its memory. Raises what `open_session` does."""
        if self._open is None or self._open[0] != name:
            self._open = None
            return_freed()
            self._open = name, self._open_session(name)
        return self._open[1]


@dataclass(frozen=True)
class TurnSession:
    """A component that is opened when it is its turn; implements `Session`, and tells what it is while it is closed."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    device: str
    precision: str
    tensor_device: str
    _component: str
    _turns: Turns = field(repr=False)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Open it and compute every output; see `Session.run`."""
        return self._turns.opened(self._component).run(feeds)

    def run_tensors(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Open it and compute every output; see `Session.run_tensors`."""
        return self._turns.opened(self._component).run_tensors(feeds)
