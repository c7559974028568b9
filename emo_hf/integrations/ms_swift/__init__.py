"""ms-swift: a file for `--external_plugins`, with which `--optimizer emonavi` makes an emo optimizer.

    plugin=$(python -c "from emo_hf.integrations.ms_swift import PLUGIN; print(PLUGIN)")
    swift sft --optimizer emonavi --external_plugins $plugin …

`--optimizer`, not `--optim`: plugins are imported when the arguments have been parsed, and the names that `--optim`
takes have been settled by then. `emo-hf run $(which swift) sft --optim emonavi …` needs no plugin. ms-swift puts the
folder of a plugin first on its path, which is why the file lies alone in one.
"""

from __future__ import annotations

import os

PLUGIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "plugin", "emo_hf_for_ms_swift.py")
"""The file."""
