"""Where to begin with the learning rate, by kind of job and by the optimizer's rule, for users who give none.

No rate fits every task: half a decade to either side is within reach of each of these, and worth a try.
"""

from __future__ import annotations

from emo_hf.cli_errors import UserError
from emo_hf.optim.family import family_names
from emo_hf.trainer.factory import version_of
from emo_hf.trainer.options import parse_optim_args, read_options

SCRATCH, LORA, FULL = "from scratch", "LoRA", "full fine-tuning of a pretrained model"
ADAM, NAVI = "AdamW, Adam and similar", "EmoNavi, EmoFact and similar"
SIGN, SCALE = "EmoLynx, Lion and others that step by the sign", "EmoSens and others of v3.9"

STARTING_RATES: dict[tuple[str, str], tuple[float, str]] = {
    (SCRATCH, ADAM): (3e-3, "best for an average on eight small networks: 1e-3 to 1e-2"),
    (SCRATCH, NAVI): (1e-3, "the same networks: 6e-4 to 1e-2 (EmoNavi), on three of them 1e-3 to 6e-3 (EmoFact)"),
    (SCRATCH, SIGN): (1e-3, "three of these networks: 3e-4, 1e-3, 1.8e-3 (EmoLynx)"),
    (LORA, ADAM): (
        1e-3,
        "MiniLM: 1e-3, 1.8e-3; a small language model: 1e-3, 6e-3; 2e-4 for billions of parameters, arXiv:2305.14314",
    ),
    (LORA, NAVI): (3e-4, "MiniLM: 1.8e-4, 3e-4; a small language model: 3e-4, 3e-3 (EmoNavi)"),
    (LORA, SIGN): (
        3e-4,
        "a third to a tenth of AdamW's, arXiv:2302.06675 (Lion); a small language model: 6e-3 (EmoLynx)",
    ),
    (FULL, ADAM): (5e-5, "2e-5 to 5e-5, arXiv:1810.04805 (BERT); MiniLM: 5.6e-5, and 1e-4 with an average"),
    (FULL, NAVI): (1e-5, "MiniLM: 1e-5, and 1.8e-5 with an average (EmoNavi)"),
    (FULL, SIGN): (1e-5, "a third to a tenth of AdamW's, arXiv:2302.06675 (Lion)"),
    (SCRATCH, SCALE): (1.0, "v3.9's published default; its law makes the rate, and this is a scale"),
    (LORA, SCALE): (1.0, "v3.9's published default; its law makes the rate, and this is a scale"),
    (FULL, SCALE): (0.03, "0.01 to 0.1, as v3.9's author recommends; its law makes the rate, and this is a scale"),
}
"""(kind of job, rule) → the rate to begin with, and where it comes from."""

_SIGN_RULES = ("Lynx", "LynxRelativeDecay", "Neco", "Sign", "Clan")  # EmoClan takes sign steps at times
_LIKE_ADAM = ("adam", "adafactor", "adalomo", "rmsprop", "apollo")  # in the Trainer's names


def rule_of(optim: str, optim_args: str | None) -> str:
    """The rule of an optimizer: `ADAM`, `NAVI`, `SIGN` or `SCALE`.

    Args:
        optim: as the Trainer takes it.
        optim_args: as the Trainer takes it; says the generation of an optimizer of the family.
    """
    if optim in family_names():
        version = version_of(optim, read_options(parse_optim_args(optim_args)))
        return SCALE if version.lr_is_a_scale else SIGN if version.rule.__name__ in _SIGN_RULES else NAVI
    if "lion" in optim:
        return SIGN
    if any(name in optim for name in _LIKE_ADAM):
        return ADAM
    raise UserError(f"learning_rate is missing: no rate to begin with is known for optim {optim}")
