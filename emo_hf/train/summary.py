"""What a run has come to: the facts, and the table that is printed at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emo_hf.laws.metrics import PREFIX
from emo_hf.train.measures import Measure


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The facts of a run.

    Attributes:
        task, model, optimizer: what was trained, from what, with what.
        trainable, parameters: numbers of parameters, those that were trained and all of them.
        train_examples, validation_examples: numbers of examples (blocks when packed).
        steps, planned_steps: optimizer steps done, and those asked for.
        resumed_from: checkpoint that the run went on from.
        interrupted: whether the user stopped it.
        history: the Trainer's log history.
        measures: what the task is judged by beside the loss.
        law: the law that the emotion followed, if there was one.
        decisions: what the law has decided.
        majority_baseline: accuracy of always answering the most frequent label.
        seconds: wall time of this process's part of the run.
        saved: what was saved, as name → path.
        run_folder: where TensorBoard finds its files; None if nothing was reported to it.
    """

    task: str
    model: str
    optimizer: str
    trainable: int
    parameters: int
    train_examples: int
    validation_examples: int
    steps: int
    planned_steps: int
    resumed_from: str | None
    interrupted: bool
    history: Sequence[Mapping[str, Any]]
    measures: Sequence[Measure]
    law: str | None
    majority_baseline: float | None
    seconds: float
    saved: Mapping[str, str]
    run_folder: str | None
    decisions: Sequence[Mapping[str, Any]] = ()

    @property
    def train_loss(self) -> float | None:
        """Loss of the last log line, the mean over the steps since the line before."""
        return next((line["loss"] for line in reversed(self.history) if "loss" in line), None)

    @property
    def optimizer_and_law(self) -> str:
        return self.optimizer if self.law is None else f"{self.optimizer} (law {self.law})"

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        return [line for line in self.history if "eval_loss" in line]

    @property
    def should_stop_step(self) -> int | None:
        """First logged step at which the raw self-stop signal stood, or that of the decision."""
        signal = PREFIX + "should_stop"
        logged = next((line["step"] for line in self.history if line.get(signal) == 1), None)
        return self._done_step if logged is None else logged

    @property
    def _done_step(self) -> int | None:
        return next((each["step"] for each in self.decisions if each["kind"] == "done"), None)

    @property
    def stopped_early(self) -> bool:
        """Whether something other than the user ended the run before its last step: the self-stop."""
        return self.steps < self.planned_steps and not self.interrupted

    def facts(self) -> dict[str, Any]:
        """All of it as plain values, for `summary.json`."""
        last = dict(self.evaluations[-1]) if self.evaluations else {}
        facts: dict[str, Any] = {
            "task": self.task,
            "model": self.model,
            "optimizer": self.optimizer,
            "trainable_parameters": self.trainable,
            "parameters": self.parameters,
            "train_examples": self.train_examples,
            "validation_examples": self.validation_examples,
            "steps": self.steps,
            "planned_steps": self.planned_steps,
            "resumed_from": self.resumed_from,
            "interrupted": self.interrupted,
            "train_loss": self.train_loss,
            "eval_loss": last.get("eval_loss"),
            "decisions": [dict(decision) for decision in self.decisions],
            "should_stop_step": self.should_stop_step,
            "stopped_by_self_stop": self.stopped_early,
            "seconds": round(self.seconds, 1),
        }
        if self.majority_baseline is not None:
            facts["majority_baseline"] = self.majority_baseline
        if self.validation_examples:
            for measure in self.measures:
                facts[measure.key] = measure.of(last)
                if measure.with_first and self.evaluations:
                    facts[f"first_{measure.key}"] = measure.of(self.evaluations[0])
        return facts

    def rows(self) -> list[tuple[str, str]]:
        """The lines of the table."""
        share = 100 * self.trainable / max(self.parameters, 1)
        rows = [
            ("task", self.task),
            ("model", self.model),
            ("optimizer", self.optimizer_and_law),
            ("trainable parameters", f"{self.trainable:,} of {self.parameters:,} ({share:.2f} %)"),
            ("examples", f"{self.train_examples:,} training, {self.validation_examples:,} validation"),
            ("steps", self._steps()),
            ("train loss", number(self.train_loss)),
        ]
        if self.evaluations:
            last = self.evaluations[-1]
            rows.append(("eval loss", number(last["eval_loss"])))
            rows += [(measure.title, self._measured(measure)) for measure in self.measures]
        went = ", ".join(f"{each['kind']} at {each['step']:,}" for each in self.decisions)
        rows += [
            *([("decisions", went)] if went else []),
            ("self-stop signal", self._self_stop()),
            ("wall time", self.wall_time()),
            *((f"saved {name}" if name != "picture" else name, path) for name, path in self.saved.items()),
        ]
        if self.run_folder is not None:
            rows.append(("watch it with", f"tensorboard --logdir {self.run_folder}"))
        return rows

    def _steps(self) -> str:
        steps = f"{self.steps:,} of {self.planned_steps:,}"
        if self.resumed_from is not None:
            steps += f", resumed from {self.resumed_from}"
        if self.interrupted:
            steps += ", interrupted: go on with --resume_from_checkpoint true"
        return steps

    def wall_time(self) -> str:
        """As it is written."""
        return f"{int(self.seconds) // 60} min {int(self.seconds) % 60:02d} s"

    def _measured(self, measure: Measure) -> str:
        first, last = measure.of(self.evaluations[0]), measure.of(self.evaluations[-1])
        if last is None:
            return "not measured"
        text = measure.form(last)
        if measure.majority and self.majority_baseline is not None:
            text += f" (always the most frequent label: {measure.form(self.majority_baseline)})"
        if measure.with_first and first is not None and len(self.evaluations) > 1:
            text += f" (at step {self.evaluations[0]['step']:,}: {measure.form(first)})"
        return text

    def _self_stop(self) -> str:
        if self._done_step is not None and self.stopped_early:
            return f"stopped by itself at step {self.steps:,} of at most {self.planned_steps:,}"
        if not any(PREFIX + "should_stop" in line for line in self.history):
            return "none (the optimizer has no emotion)"
        step = self.should_stop_step
        fired = "never fired" if step is None else f"first fired at step {step:,}"
        return f"{fired}; training was {'stopped by it' if self.stopped_early else 'not stopped by it'}"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values in two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def number(value: float | None) -> str:
    """A loss as it is written."""
    return "not logged" if value is None else f"{value:.4f}"
