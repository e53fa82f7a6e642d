"""The whole fault suite: a table of what was tried and what came of it, and as the last line the figures as JSON.

    python tests/chaos/run.py                    # every kill point, every fault three times, real runs: some ten minutes
    python tests/chaos/run.py --quick            # what `make test` runs
    python tests/chaos/run.py points redis       # these alone

Ends with 1 where a job did not recover. docs/faults.md says what each fault is.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent
sys.path[:0] = [str(TESTS)]

from cluster.control_plane import ControlPlane  # noqa: E402
from stack.fork_server import ForkServer  # noqa: E402

from chaos.arena import Arena  # noqa: E402
from chaos.suite import NAMES, run_suite  # noqa: E402
from chaos.trials import add_up, build_marks, render  # noqa: E402

QUICK_POINTS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*", choices=[*NAMES, []], help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="each fault once, with short times; a few kill points")
    parser.add_argument("--lanes", type=int, default=3, help="scenarios side by side (default: %(default)s)")
    options = parser.parse_args()
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {line}", file=sys.stderr, flush=True)

    crds = sorted((REPOSITORY / "charts" / "llamero" / "crds").glob("*.yaml"))
    with (
        tempfile.TemporaryDirectory(prefix="llamero-chaos-") as folder,
        ForkServer() as fork_server,
        ControlPlane(crds=crds) as plane,
    ):
        arena = Arena(plane, Path(folder), fork_server, full=not options.quick)
        points = QUICK_POINTS if options.quick else None
        trials = run_suite(arena, options.scenario or NAMES, options.lanes, points, tell)
    rows = add_up(trials)
    print(render(rows))
    print(json.dumps({"benchmark": "chaos", "marks": build_marks(rows)}))
    return 0 if all(t.is_recovered or t.skipped for t in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
