"""What every component of a pipeline is: a `torch.nn.Module` by its type, a `Session` inside, and no weights for torch.

Its graph is compiled for one device in one precision. What would only change how PyTorch computes (memory formats, attention
slicing) changes nothing here; what asks for another device, another precision or the weights is refused, saying what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Self

import torch

from .errors import RequestError
from .session import Session

_LOAD = "load the pipeline with the device that it is to run on: load_pipeline(folder, device='CUDA'), 'GPU' or 'CPU'"
_PRECISION = "its inputs and outputs are float32; what it computes in is chosen when it is converted (--precision fp16)"
_ORIGINAL = "for the modules and weights of PyTorch load the original model with diffusers"


class _NotThereError(RequestError, AttributeError):
    """An attribute of the original that a graph does not have; `hasattr` and `getattr` with a default work as ever."""


class SessionModule(torch.nn.Module):
    """What every component shows a pipeline.

    device: where the pipeline is to keep its tensors; that of the session unless said otherwise.
    """

    dtype = torch.float32

    def __init__(self, config: Any, session: Session, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.session = session
        self.device = torch.device(device or session.tensor_device)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Nothing, where it is in float32 on that device already. Raises RequestError for another device or dtype."""
        for wanted in (*args, kwargs.get("device"), kwargs.get("dtype")):
            if isinstance(wanted, torch.Tensor):
                self.to(wanted.device, wanted.dtype)
            elif isinstance(wanted, torch.dtype):
                if wanted != self.dtype:
                    self._refuse(f"cannot become {str(wanted).removeprefix('torch.')}", _PRECISION)
            elif wanted is not None and not isinstance(wanted, bool) and not self._is_on(wanted):
                self._refuse(f"cannot move to {wanted}", _LOAD)
        return self

    def cpu(self) -> Self:
        """As `to("cpu")`."""
        return self.to("cpu")

    def float(self) -> Self:
        """As `to(torch.float32)`."""
        return self.to(torch.float32)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> NoReturn:  # noqa: ARG002 (torch names them)
        """Through which torch moves and casts all weights of a module: `half`, `bfloat16`, `cuda`, `type`, `to_empty`."""
        self._refuse("has no weights to cast or to move", f"{_LOAD}; {_PRECISION}")

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Raises RequestError, as `parameters` does: a count of none would be wrong."""
        self._refuse("has no weights that torch could see", _ORIGINAL)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Nothing, for False. Raises RequestError for True."""
        return super().requires_grad_(requires_grad) if requires_grad else self

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Raises RequestError: an empty one would be saved as if it were the model."""
        self._refuse("has no weights that torch could see", _ORIGINAL)

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> NoReturn:  # noqa: ARG002
        """Raises RequestError."""
        self._refuse("takes no other weights", "convert the model that has them with vaefix-convert")

    def __getattr__(self, name: str) -> Any:
        """Raises an error that is a RequestError and an AttributeError: it may be something that the original has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise _NotThereError(f"a compiled graph has no {name}", source=type(self).__name__, remedy=_ORIGINAL) from None

    def _is_on(self, device: str | int | torch.device) -> bool:
        if str(device).upper() == self.session.device:
            return True
        try:
            wanted = torch.device(device)
        except RuntimeError:  # no device of torch
            return False
        return wanted.type == self.device.type and wanted.index in (None, self.device.index or 0)

    def _refuse(self, reason: str, remedy: str) -> NoReturn:
        what = f"a graph compiled for {self.session.device} in {self.session.precision}"
        raise RequestError(f"{what} {reason}", source=type(self).__name__, remedy=remedy)
