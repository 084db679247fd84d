"""Measure all parts in fresh processes, then write results, figure and page: `make bench`.

By hand, from `tests/`: python -m benchmarks [--quick] [--only PART …] [--page].
"""

import argparse

from . import driver, page
from .jobs import PARTS

FIGURE, PAGE = "figures/growth.png", "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="update only these parts")
    parser.add_argument("--quick", action="store_true", help="test run into build/benchmarks/")
    parser.add_argument("--page", action="store_true", help="measure nothing, write figure and page")
    args = parser.parse_args()
    target = driver.ROOT / "build" / "benchmarks" if args.quick else driver.HERE
    target.mkdir(parents=True, exist_ok=True)
    if not args.page:
        driver.measure(args.only, target, quick=args.quick)
    results = driver.read_results(target)
    if "growth" in results:
        from . import figure  # heavy, and a process inherits its parent's peak memory

        figure.write_figure(results["growth"]["points"], target / FIGURE)
    (target / PAGE).write_text(page.rendered(results, FIGURE))
    driver.log(f"{target / PAGE} written")


if __name__ == "__main__":
    main()
