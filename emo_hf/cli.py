"""`emo-hf`: train, run, compare, plot, doctor."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "train": ("emo_hf.recipes.train", "fine-tune a model (LoRA or full) from a YAML file and --options"),
    "run": ("emo_hf.run", "run any training script with the emo optimizers known to the Trainer"),
    "compare": ("emo_hf.compare.main", "compare optimizers, laws, schedules: a study, from a YAML file to a report"),
    "plot": ("emo_hf.recipes.plot", "draw a run: loss, effective learning rate, scalar, decisions, stop signal"),
    "doctor": (
        "emo_hf.doctor",
        "check this installation: versions, registration, whether the loss arrives",
    ),
}


def usage() -> str:
    lines = ["usage: emo-hf COMMAND [ARGS ...]", ""]
    lines += [f"  {name:8} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([*lines, "", "emo-hf COMMAND --help tells more."])


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after `emo-hf`; the process's own if None.

    Returns:
        The exit code: 0, or 2 for arguments that cannot be used, or what the command says.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"emo-hf: unknown command {name!r}\n{usage()}", file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(COMMANDS[name][0])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("emo_hf"):
            raise
        print(f'emo-hf {name} needs {error.name}: pip install "emo_hf[hf]"', file=sys.stderr)
        return 2
    return int(command.main(rest))


if __name__ == "__main__":
    sys.exit(main())
