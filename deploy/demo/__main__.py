"""The whole main job in one command: real software TPMs, real measured boots, a real KMIP server.

python deploy/demo [--keep] [--folder DIR]
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from acts import act_1, act_2, act_3, act_4, act_5
from later_acts import act_6, act_7, act_8, act_9
from narrate import Narrator
from stage import DemoFailed, Stage

ACTS = (act_1, act_2, act_3, act_4, act_5, act_6, act_7, act_8, act_9)


def main() -> int:
    """Play all acts; 0 only if every expectation held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    parser.add_argument("--folder", type=Path, help="folder for everything the demo makes")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="trustauthority-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    stage, tell = Stage(folder=folder.absolute(), keep=options.keep), Narrator()
    failed = True
    try:
        for act in ACTS:
            act(stage, tell)
        tell.end()
        failed = False
    except DemoFailed as error:
        sys.stderr.write(f"\nThe demo failed.\n{error}\nLogs: {folder / 'logs'}\n")
    finally:
        if options.keep and not failed:
            _tell_what_next(stage)
        else:
            stage.close()
            if not failed:
                shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


def _tell_what_next(stage: Stage) -> None:
    config = stage.hosts["host-a"].config
    sys.stdout.write(
        f"\nEverything is left running in {stage.folder}. Try:\n"
        f"  export TA_CONTEXTS_FILE={stage.environment()['TA_CONTEXTS_FILE']}\n"
        "  .venv/bin/ta status\n"
        "  .venv/bin/ta host list\n"
        "  .venv/bin/ta host explain host-c\n"
        "  .venv/bin/ta audit tail\n"
        f"  .venv/bin/hostagent attest --config {config}\n"
        f"Stop it: kill {' '.join(map(str, stage.pids()))}; then remove {stage.folder}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
