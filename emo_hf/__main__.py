import sys

from emo_hf.cli import main

sys.exit(main())
