"""Python imports this when it starts, in the children of `emo-hf run`: its folder is first on their PYTHONPATH.

It has the emo optimizers registered as soon as something imports the Trainer, and gives way to any other
sitecustomize. It imports the standard library only, and works in a Python that has neither emo_hf nor torch.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))

if os.environ.get("EMO_HF_RUN"):
    import _emo_hf_import_hook  # type: ignore[import-not-found]

    _emo_hf_import_hook.install()

# The folder has done its work: the program shall find the path as it would be without it.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != _here]


def _give_way() -> None:
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = sys.modules["sitecustomize"] = module_from_spec(spec)
        spec.loader.exec_module(module)


_give_way()
