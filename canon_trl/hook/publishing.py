"""The model card and pushes to the Hub."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel, PeftType
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from canon_trl.evaluation.training_curves import save_history
from canon_trl.hook.checkpoints import RUN_OPTIONS
from canon_trl.hook.resampling import Resampling
from canon_trl.hook.token_inputs import TokenInputs
from canon_trl.method import Method, paper_of
from canon_trl.publishing.hub import explained_failure, upload_command
from canon_trl.publishing.model_card import (
    TrainingFacts,
    changed_options,
    complete_card,
    describe_data,
    describe_model,
    is_on_hub,
    logged_results,
    own_options,
)

logger = logging.getLogger(__name__)


class Publishing(TokenInputs, Resampling):
    """Completes TRL's model card, and reports uploads that fail."""

    _tag_names = ["trl", "canon_trl"]
    _name = "an advantage estimator"
    _paper: dict[str, str] = {}
    _estimator: Method

    def method_options(self) -> dict[str, Any]:
        """Return the options of the method for the model card; those that are `None` are hidden."""
        return own_options(self.args)

    def save_history(self) -> None:
        """Write the log so far to the output folder as `metrics.csv`, `metrics.json` and `curves.png`."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            name = folder.resolve().name
            title = name if self._name.lower() in name.lower() else f"{name} ({self._name})"
            save_history(self.state.log_history, folder, accuracy_reward=self.accuracy_name or "accuracy", title=title)

    @property
    def accuracy_name(self) -> str | None:
        """The reward function that measures accuracy, without the noise of `reward_flip`.

        `None` if all rewards come from the policy, since a policy reward is not an accuracy.
        """
        given = self.reward_func_names[: len(self.reward_func_names) - len(self._policy_rewards)]
        if not given:
            return None
        name = given[self._accuracy_index]
        return f"true_{name}" if f"true_{name}" in given else name

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write `README.md`: TRL's card, with the method, its options, curves, results and citations.

        Also writes `metrics.csv`, `metrics.json` and `curves.png`. During training, which writes a card at every
        checkpoint, it does so only if checkpoints are pushed.

        Args:
            model_name: default the name of the output folder.
            dataset_name: a name on the Hub, or a description of the data.
            tags: to add to those of the method.
        """
        if not self.is_world_process_zero():
            return
        folder, history = Path(self.args.output_dir), self.state.log_history
        combined = self._combined_with()
        on_hub = dataset_name if dataset_name is not None and is_on_hub(dataset_name) else None
        tags = [tags] if isinstance(tags, str) else tags or []
        super().create_model_card(model_name or folder.name, on_hub, [*tags, *combined])
        accuracy = self.accuracy_name or "accuracy"
        curves = bool(history) and (self.args.push_to_hub or not self.is_in_train)
        if curves:
            self.save_history()
        options = self.method_options() | combined
        options |= {"reward_funcs": self.reward_func_names}
        model = self.accelerator.unwrap_model(self.model)
        methods = [*self._stages, *self._controller_methods.values()]
        papers = {each.name: each.paper for each in methods if each.name in combined}
        papers |= {name: paper_of(type(chosen)) for name, chosen in self._batch_source.options.items()}
        papers |= {reward.name: reward.method.paper for reward in self._policy_rewards}
        if not self._paper:  # a sum of several methods
            papers |= self._estimator.papers
        facts = TrainingFacts(
            method=self._name,
            options=options | {n: value for n, value in changed_options(self.args).items() if n not in options},
            base_model=describe_model(model.config._name_or_path),
            data=describe_data(dataset_name, self.train_dataset),
            num_processes=self.accelerator.num_processes,
            results=logged_results(history, accuracy, self.eval_dataset),
            combined_with={name: paper for name, paper in papers.items() if paper is not None},
            adapter=PeftType(model.peft_type).value.lower() if isinstance(model, PeftModel) else None,
            curves=curves,
        )
        complete_card(folder / "README.md", facts)

    def _combined_with(self) -> dict[str, dict[str, Any]]:
        """Return the methods that this one is combined with, by name, with their options."""
        rewards = {each.name: self._options_of_reward(each) for each in self._policy_rewards}
        methods = [*self._stages, *self._controller_methods.values()]
        stages = {each.name: self._configured_options(each) for each in methods if each.name not in self._tag_names}
        return rewards | stages | {name: asdict(options) for name, options in self._batch_source.options.items()}

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.push_to_hub`; if it fails, the files stay, and the error says how to repeat it."""
        if not self.args.push_to_hub:  # then transformers first creates the repository, which may fail
            self.save_model(_internal_call=True)
            self.create_model_card(dataset_name=kwargs.get("dataset_name"))
        options = self.args
        repository = self.hub_model_id or options.hub_model_id or Path(options.output_dir).absolute().name
        command = upload_command(
            repository,
            options.output_dir,
            exclude=("_*", f"{PREFIX_CHECKPOINT_DIR}-*"),
            revision=kwargs.get("revision") or options.hub_revision,
            private=bool(options.hub_private_repo),
        )
        with explained_failure(options.output_dir, command):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload a complete checkpoint: transformers already calls this before `run_options.json` exists."""
        if Path(checkpoint_folder, RUN_OPTIONS).exists():
            self._warn_of_failed_pushes()
            super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._warn_of_failed_pushes()

    def _warn_of_failed_pushes(self) -> None:
        """Warn of failed uploads in the background, which transformers ignores."""
        push = getattr(self, "push_in_progress", None)
        for job in push.jobs if push is not None else []:
            if job.done() and job.exception() is not None:
                logger.warning("a checkpoint was not uploaded; training continues: %s", job.exception())
        if push is not None:
            push.jobs = [job for job in push.jobs if not job.done()]
