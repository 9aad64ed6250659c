"""How long `import vap_gym` takes in a fresh interpreter, less the start of the interpreter itself."""

import argparse
import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """Wall-clock of a fresh interpreter that runs code."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Print p50 and p95 in milliseconds; the machine should be idle. The bound is 300 ms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    seconds("import vap_gym")  # writes the byte code
    pairs = [(seconds("pass"), seconds("import vap_gym")) for _ in range(repeats)]
    spent_ms = sorted(1000 * (imported - bare) for bare, imported in pairs)
    p95 = spent_ms[min(len(spent_ms) - 1, round(0.95 * len(spent_ms)))]
    print(f"import vap_gym: p50 {statistics.median(spent_ms):.0f} ms, p95 {p95:.0f} ms, {repeats} fresh interpreters")


if __name__ == "__main__":
    main()
