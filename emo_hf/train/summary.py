"""What a run has come to: the facts for `summary.json`, and the table that is printed at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.decision import Note
from emo_hf.laws.metrics import NOTES, PREFIX
from emo_hf.laws.words import SKIPPED, text_of
from emo_hf.plot.run import Run
from emo_hf.train.data import Examples
from emo_hf.train.measures import Measure
from emo_hf.train.options import Job

Line = Mapping[str, Any]

MOST_DECISIONS = 6
"""As many are written out at the end."""


def facts_of(trainer: Any, job: Job, examples: Examples, measures: Sequence[Measure], **more: Any) -> dict[str, Any]:
    """What is known of a run, as plain values.

    Args:
        trainer: which has trained, evaluated and saved.
        job: what it was made from.
        examples: likewise.
        measures: what the task is judged by beside the loss.
        **more: `resumed_from`, `interrupted`, `seconds`.
    """
    state, emo, name = trainer.state, unwrap(trainer.optimizer), job.model.model_name_or_path
    evaluations = [line for line in state.log_history if "eval_loss" in line]
    first, of_saved = evaluations[0] if evaluations else {}, evaluation_of_saved(trainer)
    best = best_evaluation(state.log_history)
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in trainer.model.parameters()]  # ZeRO-3: whole
    signals = [line["step"] for line in state.log_history if line.get(PREFIX + "should_stop") == 1]
    losses = [line["loss"] for line in state.log_history if "loss" in line]
    facts: dict[str, Any] = {
        "task": job.model.task,
        "model": f"{name or f'{job.model.model_type}, untrained'}{' with LoRA' if job.lora.use_lora else ''}",
        "optimizer": job.training.optim.value,
        "law": None if emo is None else emo.emotion.law,
        "learning_rate": job.training.learning_rate,
        "trainable_parameters": sum(size for size, trains in sizes if trains),
        "parameters": sum(size for size, _ in sizes),
        "train_examples": len(trainer.train_dataset),
        "validation_examples": 0 if trainer.eval_dataset is None else len(trainer.eval_dataset),
        "steps": state.global_step,
        "planned_steps": state.max_steps,
        "stopped_by_self_stop": state.global_step < state.max_steps and not more["interrupted"],
        "should_stop_step": signals[0] if signals else None,
        "decisions": list((state.stateful_callbacks.get(NOTES) or {}).get("decisions", ())),
        "train_loss": losses[-1] if losses else None,
        "eval_loss": of_saved.get("eval_loss"),
        "evaluations": len({line["step"] for line in evaluations}),
        "first_step": first.get("step"),
        "best_eval_loss": best and best[0],
        "best_step": best and best[1],
        "saved_step": saved_step(trainer),
        "saved_average": emo is not None and emo.keeps_average,
        "majority_baseline": examples.majority_baseline,
        **more,
    }
    for measure in measures if trainer.eval_dataset is not None else ():
        facts[measure.key] = measure.of(of_saved)
        facts[f"first_{measure.key}"] = measure.of(first)
    return facts


def saved_step(trainer: Any) -> int:
    """The step whose weights are saved at the end: that of the best evaluation, where its model was loaded."""
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return int(best or trainer.state.global_step)


def evaluation_of_saved(trainer: Any) -> Line:
    """The log entry of the evaluation of what is saved; empty if it was not evaluated."""
    lines = [line for line in trainer.state.log_history if "eval_loss" in line and line["step"] == saved_step(trainer)]
    return lines[-1] if lines else {}


def best_evaluation(history: Sequence[Line]) -> tuple[float, int] | None:
    """The lowest evaluation loss and its step; None without evaluations."""
    return min(((line["eval_loss"], line["step"]) for line in history if "eval_loss" in line), default=None)


def rows_of(
    facts: Mapping[str, Any], measures: Sequence[Measure], beside: Sequence[Run], saved: Mapping[str, str]
) -> list[tuple[str, str]]:
    """The lines of the table.

    Args:
        facts: see `facts_of`.
        measures: what the task is judged by beside the loss.
        beside: other runs to be named.
        saved: what was saved, as name → path.
    """
    trained, parameters, steps = facts["trainable_parameters"], facts["parameters"], facts["steps"]
    length = f"{steps:,} of {facts['planned_steps']:,}"
    length += f", resumed from {facts['resumed_from']}" if facts["resumed_from"] else ""
    law, loss = facts["law"], facts["train_loss"]
    rows = [
        ("task", facts["task"]),
        ("model", facts["model"]),
        ("optimizer", facts["optimizer"] if law is None else f"{facts['optimizer']} (law {law})"),
        ("trainable parameters", f"{trained:,} of {parameters:,} ({100 * trained / max(parameters, 1):.2f} %)"),
        ("examples", f"{facts['train_examples']:,} training, {facts['validation_examples']:,} validation"),
        ("steps", length + (", interrupted" if facts["interrupted"] else "")),
        ("train loss", "not logged" if loss is None else f"{loss:.4f}"),
    ]
    if facts["eval_loss"] is not None:
        rows.append(("eval loss", f"{facts['eval_loss']:.4f}"))
        rows += [(measure.title, _measured(measure, facts)) for measure in measures]
    for run in beside:
        best = best_evaluation(run.history)
        said = "was not evaluated" if best is None else f"best eval loss {best[0]:.4f}, at step {best[1]:,}"
        rows.append(("beside", f"{run.name}: {said}"))
    rows += [("decided", said) for said in in_words(facts["decisions"])]
    if law is not None:
        rows.append(("self-stop", _self_stop(facts)))
    rows.append(("wall time", f"{int(facts['seconds']) // 60} min {int(facts['seconds']) % 60:02d} s"))
    what = "average of the weights" if facts["saved_average"] else "weights"
    when = "the last step" if facts["saved_step"] == steps else "the best evaluation"
    rows.append(("what is saved", f"the {what} of {when}, step {facts['saved_step']:,}"))
    advice = _next(facts)
    return [*rows, *saved.items(), ("use it", _use(saved)), *([("next", advice)] if advice else [])]


def _measured(measure: Measure, facts: Mapping[str, Any]) -> str:
    value, first, baseline = facts[measure.key], facts.get(f"first_{measure.key}"), facts["majority_baseline"]
    if value is None:
        return "not measured"
    beside = []
    if first is not None and facts["evaluations"] > 1:
        beside.append(f"{first:{measure.form}} at step {facts['first_step']:,}")
    if measure.key == "accuracy" and baseline is not None:
        beside.append(f"{baseline:{measure.form}} by always saying the most frequent label")
    return format(value, measure.form) + (f" ({'; '.join(beside)})" if beside else "")


def _self_stop(facts: Mapping[str, Any]) -> str:
    if facts["stopped_by_self_stop"]:
        return f"stopped by itself at step {facts['steps']:,} of at most {facts['planned_steps']:,}"
    step = facts["should_stop_step"]
    return "it never said that training may end" if step is None else f"it first said so at step {step:,}; it went on"


def _use(saved: Mapping[str, str]) -> str:
    if "adapter" in saved:
        return f"PeftModel.from_pretrained(model, {saved['adapter']!r}), or save it merged (--merge_on_save)"
    return f"from_pretrained({saved['model']!r})"


def _next(facts: Mapping[str, Any]) -> str | None:
    """What the user may want to do now; None if nothing is left to do."""
    best, step = facts["best_eval_loss"], facts["best_step"]
    if facts["interrupted"]:
        return "go on with --resume_from_checkpoint true"
    if best is None:
        return "to see how good it is, give validation data and --eval_strategy epoch"
    if facts["saved_step"] == facts["steps"] and best < facts["eval_loss"]:
        return (
            f"step {step:,} was better (eval loss {best:.4f}): with equal eval_strategy and save_strategy it is kept"
        )
    if step == facts["steps"] and facts["evaluations"] > 1 and not facts["stopped_by_self_stop"]:
        return "the eval loss fell to the end: train longer (--num_train_epochs, --max_steps)"
    return None


def in_words(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each decision, the first and the last if there are many; steps left out are counted only."""
    notes = [Note(**decision) for decision in decisions]
    said = [f"step {note.step:,}: {text_of(note)}" for note in notes if note.kind != SKIPPED]
    left_out, half = len(notes) - len(said), MOST_DECISIONS // 2
    if len(said) > MOST_DECISIONS:
        said[half:-half] = [f"… {len(said) - MOST_DECISIONS} more, all in trainer_state.json"]
    return [*said, *([f"{left_out} step{'s' if left_out > 1 else ''} left out"] if left_out else [])]


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values in two aligned columns; a name that repeats is written once."""
    width, before = max(len(name) for name, _ in rows), ["", *(name for name, _ in rows)]
    shown = (("" if name == last else name, value) for (name, value), last in zip(rows, before, strict=False))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)
