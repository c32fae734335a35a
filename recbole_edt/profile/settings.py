"""The settings of the stage ``profile``."""

from __future__ import annotations

from dataclasses import dataclass

from recbole_edt.errors import ConfigError, choice_faults, whole_number_faults

SRA, HIERARCHICAL, PLAIN = "sra", "hierarchical", "plain"
PIPELINES = (SRA, HIERARCHICAL, PLAIN)
_CHOICES = {"generator": ("offline", "llm"), "pipeline": PIPELINES}


@dataclass(frozen=True)
class ProfileConfig:
    """How profiles are written (method, section 9)."""

    generator: str = "offline"
    """``offline``: telling words of the items, no LLM; ``llm``: a language model writes the profiles (paper)."""
    n_clusters: int = 10
    """Item groups per domain, at least 1 (paper: C = 10)."""
    pipeline: str = SRA
    """``sra``: summarize, reform, analyze (paper); ``hierarchical``: LLM4CDSR's, summaries of raw rows and one profile
    from them; ``plain``: one summary, the paper's ablation w/o S-R-A."""
    n_words: int = 5
    """Offline: words per summary of a group, at least 1; ``plain`` has this many per cluster as well."""
    seed: int = 42
    """For k-means, 0 or more."""

    def faults(self) -> list[str]:
        """What is wrong with the values, one ``key: message`` each."""
        return choice_faults(self, _CHOICES) + whole_number_faults(self, {"n_clusters": 1, "n_words": 1, "seed": 0})

    def validate(self) -> None:
        """Raises: ConfigError listing every fault."""
        if found := self.faults():
            raise ConfigError("\n".join(f"profile.{fault}" for fault in found))


def infix(pipeline: str) -> str:
    """What tells the files of this kind of profiles from those of the default kind, before the last dot or dots."""
    return "" if pipeline == SRA else f"{pipeline}."
