"""Which attention a model has: the choices, their limits, and how they are written into its configuration."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from sparq.attention.gate import GATES
from sparq.attention.softmax import DETACHABLE_SINKS, FUSED_SINKS, SINKS
from sparq.errors import UserError

IMPLEMENTATIONS = ("fused", "plain")


@dataclasses.dataclass(frozen=True)
class AttentionSettings:
    """Which attention a model has.

    Attributes:
        sink: one of ``sparq.attention.SINKS``; "none" is the ordinary softmax through the same code.
        implementation: "fused" or "plain".
        detach: let no gradient pass through the row's maximum or mean (sinks max and mean).
        gamma: γ of the clipped softmax, at most 0; None for every other sink.
        zeta: ζ of the clipped softmax, at least 1.
        gate: "per_token", or None for no gates; goes with every sink.
        gate_opening: π, the share that an untrained gate lets through, between 0 and 1.
        gate_pretrained: whether gates are multiplied by 1/π, so that a pretrained model starts as what it was.

    Raises:
        UserError: a value is unknown or out of range, or two do not go together.
    """

    sink: str = "max"
    implementation: str = "fused"
    detach: bool = False
    gamma: float | None = None
    zeta: float = 1.0
    gate: str | None = None
    gate_opening: float = 0.25
    gate_pretrained: bool = True

    def __post_init__(self) -> None:
        if self.sink not in SINKS:
            raise UserError(f"sink: unknown value {self.sink!r}, expected one of {', '.join(SINKS)}")
        if self.implementation not in IMPLEMENTATIONS:
            expected = ", ".join(IMPLEMENTATIONS)
            raise UserError(f"implementation: unknown value {self.implementation!r}, expected one of {expected}")
        if self.implementation == "fused" and self.sink not in FUSED_SINKS:
            raise UserError(f"sink {self.sink!r} has no fused form: choose implementation='plain'")
        if self.detach and self.sink not in DETACHABLE_SINKS:
            raise UserError(f"detach: the {self.sink!r} sink has nothing to detach (only max and mean have)")
        self._check_clipping()
        if self.gate not in (None, *GATES):
            raise UserError(f"gate: unknown value {self.gate!r}, expected {' or '.join(GATES)} or nothing")
        if not 0 < self.gate_opening < 1:
            raise UserError(f"gate_opening: {self.gate_opening!r} (expected a number between 0 and 1)")

    def _check_clipping(self) -> None:
        if self.sink != "clipped":
            if self.gamma is not None or self.zeta != 1:
                raise UserError(f"gamma, zeta: {self.gamma}, {self.zeta} (the {self.sink!r} sink is not clipped)")
        elif self.gamma is None:
            raise UserError("gamma: missing (the clipped softmax needs it, or an alpha)")
        elif not -math.inf < self.gamma <= 0:
            raise UserError(f"gamma: {self.gamma!r} (expected a number of at most 0)")
        elif not 1 <= self.zeta < math.inf:
            raise UserError(f"zeta: {self.zeta!r} (expected a number of at least 1)")

    @property
    def name(self) -> str:
        """The name in the attention and the mask interface."""
        clipping = f"_{self.gamma!r}_{self.zeta!r}" if self.sink == "clipped" else ""
        return f"sparq_{self.sink}{clipping}_{self.implementation}" + "_detached" * self.detach + "_gated" * self.gated

    @property
    def gated(self) -> bool:
        """Whether heads have gates."""
        return self.gate is not None

    @property
    def sums_to_one(self) -> bool:
        """Whether each row of the attention sums to 1, so that what is added to all values comes out as it went in."""
        return self.sink == "none" and not self.gated

    @property
    def gate_settings(self) -> tuple[Any, ...]:
        """All that decides which gates there are; equal where gates can stay."""
        return (self.gate, self.gate_opening, self.gate_pretrained)

    def record(self) -> dict[str, Any]:
        """Give what a configuration or an adapter folder has to say; :meth:`parse` reads it."""
        foreign = set() if self.sink == "clipped" else {"gamma", "zeta"}
        foreign |= set() if self.gated else {"gate", "gate_opening", "gate_pretrained"}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in foreign}

    @classmethod
    def parse(cls, record: object, where: str) -> AttentionSettings:
        """Read what a configuration or an adapter folder says.

        Raises:
            UserError: naming where it stands.
        """
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected a mapping, got {record!r}")
        try:
            return cls(**record)
        except (TypeError, UserError) as error:
            raise UserError(f"{where}: {error}") from error
