"""The settings of the stage ``augment``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from recbole_edt.errors import ConfigError, choice_faults, whole_number_faults

_CHOICES = {
    "generator": ("offline", "llm"),
    "generated_items": ("virtual", "catalog"),
    "directions": ("both", "minority"),
    "insertion": ("after_source", "append", "random", "none"),
}
_QUANTILE = re.compile(r"q(\d+(\.\d*)?|\.\d+)")


@dataclass(frozen=True)
class AugmentConfig:
    """How sequences are augmented (method, section 3)."""

    generator: str = "offline"
    """``offline``: co-occurrence of training rows, no LLM; ``llm``: a language model writes items (paper, eq. 4)."""
    generated_items: str = "virtual"
    """What the LLM writes is a ``virtual`` item unless the catalogue has it (paper), or stands for the nearest item
    of the ``catalog`` that the user does not have in training."""
    n_clusters: int = 10
    """Item groups per domain, at least 1; a user has at most one representative in each (paper: K = 10)."""
    n_generated: int = 10
    """Items proposed per user and direction, at least 1 (the paper gives no number)."""
    k: int = 3
    """A proposal must be among the k most like the source representatives, at least 1 (paper: not given)."""
    tau: float | str = "q0.10"
    """Least cosine to the target representatives: a number in [-1, 1] (paper: 0.90, for DeepSeek's vectors),
    or ``q0.10``, the 10 % quantile of the target domain's cosines between nearest neighbours."""
    directions: str = "both"
    """``both`` domains receive items (paper), or only each user's ``minority`` domain."""
    insertion: str = "after_source"
    """``after_source``: after the item it resembles (paper); ablations ``append``, ``random``, ``none``."""
    filter: bool = True
    """Whether eq. 6 is applied; false is the paper's ablation without the noise filter."""
    injection_ratio: float = 1.0
    """Share of the kept items that are inserted, drawn at random, above 0 and at most 1 (paper's tables 6 and 7)."""
    seed: int = 42
    """For k-means, the quantile's sample, the injected share and random insertion; 0 or more."""

    def faults(self) -> list[str]:
        """What is wrong with the values, one ``key: message`` each."""
        found = choice_faults(self, _CHOICES)
        found += whole_number_faults(self, {"n_clusters": 1, "n_generated": 1, "k": 1, "seed": 0})
        if not isinstance(self.filter, bool):
            found.append(f"filter: {self.filter!r} is not true or false")
        return found + _tau_faults(self.tau) + _ratio_faults(self.injection_ratio)

    def validate(self) -> None:
        """Raises: ConfigError listing every fault."""
        if found := self.faults():
            raise ConfigError("\n".join(f"augment.{fault}" for fault in found))


def _tau_faults(tau: float | str) -> list[str]:
    if isinstance(tau, str):
        if _QUANTILE.fullmatch(tau) and float(tau[1:]) <= 1:
            return []
        return [f"tau: {tau!r} is neither a number in [-1, 1] nor a quantile such as q0.10"]
    if isinstance(tau, (int, float)) and not isinstance(tau, bool) and -1 <= tau <= 1:
        return []
    return [f"tau: {tau!r} is not in [-1, 1]; write a cosine such as 0.9 or a quantile such as q0.10"]


def _ratio_faults(ratio: float) -> list[str]:
    if isinstance(ratio, (int, float)) and not isinstance(ratio, bool) and 0 < ratio <= 1:
        return []
    return [f"injection_ratio: {ratio!r} is not above 0 and at most 1; to insert nothing choose insertion: none"]
