"""Another reward model in the middle of a run: loaded by every scoring worker, and in force from one step on."""

from dataclasses import asdict
from typing import Any

from rayrlhf.actors.scoring import Rewards, ScoringPool
from rayrlhf.errors import ConfigError
from rayrlhf.models.checks import check_scorer
from rayrlhf.pipelines.context import RunContext
from rayrlhf.pipelines.loop import ControlLoop
from rayrlhf.pipelines.trainer import Trainer
from rayrlhf.reward.stats import is_ensemble
from rayrlhf.telemetry.events import Event


class RewardSwap:
    """Replaces reward models at a boundary between steps, so that no batch holds scores of two of them."""

    def __init__(self, context: RunContext, scoring: ScoringPool, trainer: Trainer) -> None:
        self._context = context
        self._config = context.config
        self._scoring = scoring
        self._trainer = trainer

    def ask(self, loop: ControlLoop, *, directory: str, term: str | None = None) -> str:
        """Plan the replacement of a model term by the reward model in `directory`; when it comes.

        ConfigError where there is no such term, or no room for it before the end; ModelError where it is no reward model.
        """
        name = self._term(term)
        check_scorer(directory, max_length=self._config.reward_max_length)
        self._demand_spread(name, directory)
        if loop.boundary >= self._config.ppo.updates:
            raise ConfigError(f"The run ends with update {self._config.ppo.updates}, whose responses are being drawn.")

        async def act() -> None:
            now = self._scoring.rewards
            await self._scoring.swap(Rewards(version=now.version + 1, replaced=now.replaced | {name: directory}))
            # Scores of another model have another mean and deviation.
            await self._trainer.change("forget_scores")
            text = (
                f"{directory} scores in place of {name} from update {step + 1} on, as reward version {now.version + 1}."
            )
            self._context.events.tell(Event(kind="swap", text=text, role="scoring", step=step))

        step = loop.at_boundary(act)
        return f"{directory} replaces {name} after update {step}, when nothing drawn before it is left to be scored."

    async def restore(self, state: dict[str, Any]) -> None:
        """Go on with the reward models that were in force."""
        if state["version"]:
            await self._scoring.swap(Rewards(**state))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return asdict(self._scoring.rewards)

    def _demand_spread(self, name: str, directory: str) -> None:
        """ConfigError where no ensemble would be left to weigh advantages by."""
        own = str(self._context.folder.model_dir("reward_model"))
        used = {model.called: model.path or own for model in self._config.ppo.reward_models}
        used |= self._scoring.rewards.replaced | {name: directory}
        if self._config.ppo.uncertainty_weight and not any(is_ensemble(path) for path in used.values()):
            raise ConfigError(
                f"{directory} is a single reward model, and ppo.uncertainty_weight={self._config.ppo.uncertainty_weight:g} of "
                f"this run weighs by how far the members of an ensemble differ: give one with members or heads."
            )

    def _term(self, term: str | None) -> str:
        names = [model.called for model in self._config.ppo.reward_models]
        if not names:
            raise ConfigError("No reward model is among ppo.rewards of this run: there is nothing to replace.")
        if term is None and len(names) > 1:
            raise ConfigError(
                f"The rewards of this run hold several models: name one with --term ({', '.join(names)})."
            )
        if term is not None and term not in names:
            raise ConfigError(f"--term {term} is none of this run's reward models ({', '.join(names)}).")
        return term or names[0]
