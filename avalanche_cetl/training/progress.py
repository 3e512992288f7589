"""Where a strategy stands in its calls of train(), and where the next one goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any


@dataclass
class TrainingProgress:
    """Counts calls, experiences and rounds; holds what a loaded checkpoint is to do.

    :ivar whole: between two rounds, or outside of ``train()``: the state is whole.
    :ivar warm: whether the warm-up is done.
    :ivar inside: in ``train()``, with an experience begun.
    :ivar calls: finished calls of ``train()``.
    :ivar finished: experiences finished in the current call.
    :ivar rows: numbers of target and of labelled rows of the current experience.
    """

    whole: bool = True
    warm: bool = False
    inside: bool = False
    calls: int = 0
    finished: int = 0
    rows: tuple[int, ...] = ()
    _state: Callable[[], None] | None = None
    _rounds: int = 0
    _skipped: int = 0
    _expected: list[int] = field(default_factory=list)

    def state_dict(self) -> dict[str, bool]:
        """Return whether the warm-up is done; the rest is a checkpoint's own affair."""
        return {"warm": self.warm}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Restore it."""
        self.warm = bool(state["warm"])

    def expect(
        self,
        *,
        finished: int,
        calls: int,
        rounds: int | None,
        rows: list[int],
        state: Callable[[], None],
    ) -> None:
        """Go on with the next call: pass over what was finished in it.

        :param finished: experiences of the call that are done.
        :param calls: of ``train()`` that were begun.
        :param rounds: finished in the experience in training; None outside of ``train()``.
        :param rows: numbers of rows of the experiences, to know them again.
        :param state: puts the state back once more, when the experience is set up.
        """
        self.calls = calls
        self._skipped = finished if rounds is not None else 0
        self._state, self._rounds = (state, rounds) if rounds is not None else (None, 0)
        self._expected = rows

    def begin_call(self, experiences: Any) -> Any:
        """Return the experiences of a call that are still to do."""
        self.whole, self.inside = False, False
        self.finished, skipped, self._skipped = self._skipped, self._skipped, 0
        if not skipped:
            return experiences
        if not isinstance(experiences, Iterable):
            raise ValueError(
                f"the checkpoint was saved in a call of train() with more than {skipped} "
                "experiences; train() was now called with one."
            )
        return list(islice(experiences, skipped, None))

    def begin_experience(self, rows: tuple[int, ...]) -> int:
        """Return the number of rounds that are done, with the state as it was then."""
        self.rows, self.inside = rows, True
        if self._state is None:
            return 0
        if list(rows) != self._expected:
            raise ValueError(
                f"the experience has {rows} target and labelled rows, the one in the checkpoint "
                f"{tuple(self._expected)}: call train() as in the run that is to go on."
            )
        state, self._state = self._state, None
        state()
        return self._rounds

    def end_experience(self) -> None:
        """Count an experience that is finished."""
        self.inside = False
        self.finished += 1

    def end_call(self) -> None:
        """Count a call of ``train()`` that is finished."""
        self.whole, self.inside, self.finished = True, False, 0
        self.calls += 1
