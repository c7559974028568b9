"""Decisions and emotions in words: the one place where they are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emo_hf.laws.decision import EmotionView, Note

Row = tuple[str, str]
"""What a thing is called, and what it is."""

SKIPPED, LOWERED, DONE, COMPLAINT = "skipped", "lowered", "done", "complaint"
"""Kinds of notes: a step was left out; the rate was lowered; training may end; the losses say nothing to this law."""

KINDS = {
    SKIPPED: "step left out",
    LOWERED: "rate lowered to {factor:.4g} of the learning rate",
    DONE: "training may end",
    COMPLAINT: "no change of rate",
}

REMEDIES = {
    SKIPPED: " (guard=false takes such steps; further ones are counted in emo/skipped)",
    LOWERED: " (lower=false leaves the rate alone)",
}


def text_of(note: Note, *, first: bool = False) -> str:
    """A decision in words, for people who have not read a page.

    Args:
        note: the decision.
        first: whether it is the first of its kind in the run; then it says what can be done about it.
    """
    said = f"{KINDS[note.kind].format(factor=note.factor)}: {note.reason}"
    return said + REMEDIES.get(note.kind, "") if first else said


def emotion_rows(emotion: EmotionView) -> list[Row]:
    """What an emotion says, from the loss to the signal."""
    rows = [("loss", "none yet")]
    if emotion.observations:
        averages = f"{emotion.short:.4g} (fast average), {emotion.long:.4g} (slow)"
        rows = [("loss", averages), ("taken in", _count(emotion.observations, "loss", "es"))]
    if emotion.scalar is not None:
        rows.append(("σ", f"{emotion.scalar:+.4f}"))
    rows.append(("factor", f"{emotion.coefficient:.4g}"))
    rows += [(name.replace("_", " "), f"{value:.4g}") for name, value in emotion.details.items()]
    if emotion.skipped:
        rows.append(("left out", _count(emotion.skipped, "loss", "es")))
    return [*rows, ("signal", _signal(emotion))]


def emotion_text(emotion: EmotionView) -> str:
    """An emotion in one line."""
    said = "; ".join(f"{name} {value}" for name, value in emotion_rows(emotion))
    return f"Emotion, law {emotion.law}: {said}"


def emotion_html(emotion: EmotionView) -> str:
    """An emotion as a table for notebooks."""
    return html_table(f"Emotion, law {emotion.law}", emotion_rows(emotion))


def html_table(title: str, rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A plain table that a notebook's own style is good for; the first cell of a row names it."""
    import html  # not at the top: its table of entities takes longer to load than the laws do

    heading = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = []
    for name, *cells in rows:
        values = "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in cells)
        body.append(f"<tr><th style='text-align:left'>{html.escape(name)}</th>{values}</tr>")
    top = f"<thead><tr>{heading}</tr></thead>" if head else ""
    return f"<table><caption>{html.escape(title)}</caption>{top}<tbody>{''.join(body)}</tbody></table>"


def _signal(emotion: EmotionView) -> str:
    if emotion.has_decided_to_stop:
        return "done: training may end"
    said = ["stop" if emotion.should_stop else "", "quiet" if emotion.quiet else ""]
    if emotion.flat_steps:
        said.append(f"flat for {_count(emotion.flat_steps, 'step')}")
    return ", ".join(filter(None, said)) or "none"


def _count(number: int, word: str, plural: str = "s") -> str:
    return f"{number:,} {word}{'' if number == 1 else plural}"
