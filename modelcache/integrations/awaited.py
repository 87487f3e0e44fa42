"""Tensors that are handed to somebody by name before they are here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, Self

import torch

from modelcache.patience import Cancellation, Condition, begin, end_of

LOOK_S = 0.5
"""Longest sleep of a thread that Ctrl-C may reach."""

Tensors = Generator[tuple[str, torch.Tensor], None, None]


class AwaitedTensor:
    """One tensor that is here or will be: `awaited[...]` waits for it, as a slice of safetensors' reads then."""

    def __init__(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], take: Callable[[str], torch.Tensor]) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self._take = take

    def is_floating_point(self) -> bool:
        return bool(self.dtype.is_floating_point)

    def __getitem__(self, index: Any) -> Any:
        """Given once: nothing here keeps it then. Raises what reading it raised."""
        return self._take(self.name)[index]


class AwaitedTensors:
    """Tensors by name, read by a thread of its own. A context manager: reading ends with the block. Thread-safe."""

    def __init__(
        self,
        read: Callable[[Cancellation], Tensors],
        forms: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        cancel: Cancellation | None = None,
        *,
        at_first_ask: bool = False,
    ) -> None:
        """
        Args:
            read: gives them, in any order, until it is cancelled; what it raises is raised to everyone who waits. Called and closed by
                the thread.
            forms: dtype and shape of each.
            cancel: the caller's.
            at_first_ask: reading begins when the first tensor is asked for.
        """
        self.by_name = {name: AwaitedTensor(name, *form, self._take) for name, form in forms.items()}
        self._read = read
        self._own = Cancellation()
        self._linked = (cancel or Cancellation()).on_cancel(self._own.cancel)
        self._changed = Condition()
        self._here: dict[str, torch.Tensor] = {}
        self._error: BaseException | None = None
        self._is_asked = not at_first_ask
        self._is_over = False
        self._thread = threading.Thread(target=self._bring, name="awaited tensors", daemon=True)

    def __enter__(self) -> Self:
        self._linked.__enter__()
        begin([self._thread], self._end)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        self._own.cancel()
        with self._changed:
            self._ask()
        end_of(self._thread)
        self._linked.__exit__(None, None, None)
        self._here.clear()

    def finish(self) -> None:
        """Wait until all were read. Raises what reading raised."""
        with self._changed:
            self._ask()
            while not self._is_over:
                self._changed.wait(LOOK_S)
        self.expect_sound()

    def expect_sound(self) -> None:
        """Raises what reading has raised until now."""
        if self._error is not None:
            raise self._error

    def _ask(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self._changed.notify_all()

    def _bring(self) -> None:
        with self._changed:
            while not self._is_asked:
                self._changed.wait(LOOK_S)
        try:
            with closing(self._read(self._own)) as tensors:
                for name, tensor in tensors:
                    with self._changed:
                        self._here[name] = tensor
                        self._changed.notify_all()
                    del tensor
        except BaseException as error:  # told to everyone who waits
            self._error = error
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _take(self, name: str) -> torch.Tensor:
        with self._changed:
            self._ask()
            while name not in self._here and not self._is_over:
                self._changed.wait(LOOK_S)
            if name in self._here:
                return self._here.pop(name)
        self.expect_sound()
        raise KeyError(f"`{name}` was taken before")
