"""Download the files of a benchmark, build its masks, and verify both against the paper's lists.

    python -m hsnet.prepare splits                    the official lists, from the authors' repository
    python -m hsnet.prepare coco --check              verifies only: lists, files, a sample of images and masks
    python -m hsnet.prepare pascal --cache 400        decodes and resizes every image once, for faster training

The folder is --root, else NAME in the folder HSNET_IMAGES, else NAME in the data folder. The lists are in
HSNET_SPLITS, else in `splits` in the data folder. Finished steps are skipped, and an interrupted
download continues: after an error, correct what it names and run the same command again.
"""

from filelock import FileLock, Timeout

from ..benchmarks import BENCHMARKS
from ..benchmarks.cache import build_cache
from ..benchmarks.splits import fetch_lists, splits_folder, verify_lists
from ..config import command_line, run_program
from .findings import report

LISTS = "splits"  # what the official lists are called on the command line
PREPARED = {name: benchmark for name, benchmark in BENCHMARKS.items() if benchmark.preparation}


def main() -> None:
    """The program."""
    arguments = _parser().parse_args()
    name = arguments.name
    if name == LISTS:
        root, prepare, verify = splits_folder(), lambda _: fetch_lists(), lambda _: verify_lists()
    else:
        benchmark = PREPARED[name](root=arguments.root)
        root, prepare, verify = benchmark.root, benchmark.prepare, benchmark.verify
    if not arguments.check:
        root.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(root / ".prepare.lock", timeout=0):
                prepare(arguments)
                if arguments.cache:
                    build_cache(PREPARED[name].open(size=arguments.cache, root=root), arguments.cache)
        except Timeout:
            raise ValueError(f"another `prepare` is running in {root}: wait for it, or stop it") from None
    if not report(verify(arguments.sample)):
        raise SystemExit(1)


def _parser():
    lines = "".join(f"    python -m hsnet.prepare {name:<26}{b.preparation}\n" for name, b in PREPARED.items())
    parser = command_line("prepare", __doc__.replace("\n\n", "\n\n" + lines, 1))
    option = parser.add_argument
    option("name", choices=(*PREPARED, LISTS), help="what to prepare")
    option("--root", default="", help="folder of the benchmark's files (default: see above)")
    option("--check", action="store_true", help="verify only; download, build and change nothing")
    option("--cache", type=int, metavar="SIZE", help="store all images at SIZE × SIZE pixels as well (the paper: 400)")
    option("--sample", type=int, help="number of images and masks that are opened (default: 200; fss, folder: all)")
    option("--keep-archives", action="store_true", help="keep downloaded archives after unpacking them")
    return parser


if __name__ == "__main__":
    run_program(main)
