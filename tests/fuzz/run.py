"""The run of the fuzz: batches of cases, each batch in a process of its own, so that a crash is seen and named.

python tests/fuzz/run.py --seconds 60 --seed 7     # cases 7, 8, 9, ... until the time is over
python tests/fuzz/run.py --seed 12345 --cases 1    # one case again
python tests/fuzz/run.py --files                   # files with the operators for ONNX Runtime instead of calls
"""

import argparse
import random
import subprocess
import sys
import time
import warnings

BATCH = 200  # cases a process
HANGS = 300  # seconds beyond its time after which a batch is taken to hang


def run_case(number: int) -> None:
    """Draw a call and judge it; every fourth one has a wrong argument."""
    from fuzz_cases import draw
    from judge import judge
    from wrong_arguments import judge_refusal

    call = draw(number)
    try:
        (judge_refusal if number % 4 == 0 else judge)(call, number)
    except Exception as error:
        error.add_note(f"case {number}: {call}")
        raise


def run_file(number: int) -> None:
    """Draw a file and judge it."""
    from node_files import draw, judge

    try:
        judge(number)
    except Exception as error:
        error.add_note(f"case {number}: {draw(number)}")
        raise


def run_batch(first: int, count: int, seconds: float, files: bool = False) -> None:
    """Run cases in this process, and print each one's number before it; stop when the time is over."""
    import torch

    torch.set_num_threads(2)
    warnings.simplefilter("ignore")  # of torch, about the layouts that are drawn
    end = time.monotonic() + seconds
    for number in range(first, first + count):
        print(number, flush=True)
        (run_file if files else run_case)(number)
        if time.monotonic() > end:
            return


def fuzz(seed: int, seconds: float, cases: int | None, files: bool = False) -> int:
    """Run batches until the time is over or one fails; return how many cases ran, or raise `SystemExit`."""
    end, done = time.monotonic() + seconds, 0
    again = " FILES=1" if files else ""
    while (left := end - time.monotonic()) > 0 and (cases is None or done < cases):
        count = BATCH if cases is None else min(BATCH, cases - done)
        command = [sys.executable, __file__, "--batch", "--seed", str(seed + done), "--cases", str(count)]
        command += ["--files"] if files else []
        try:
            batch = subprocess.run(
                [*command, "--seconds", str(left)], capture_output=True, text=True, check=False, timeout=left + HANGS
            )
        except subprocess.TimeoutExpired as error:
            last = (error.stdout or b"").split()[-1:] or [seed + done]
            raise SystemExit(
                f"fuzz: case {int(last[0])} hangs; repeat it: make fuzz SEED={int(last[0])} CASES=1{again}"
            ) from error
        numbers = batch.stdout.split()
        if batch.returncode:
            last = numbers[-1] if numbers else seed + done
            how = f"signal {-batch.returncode}" if batch.returncode < 0 else f"status {batch.returncode}"
            repeat = f"repeat it: make fuzz SEED={last} CASES=1{again}"
            raise SystemExit(f"{batch.stderr}\nfuzz: case {last} ended with {how}; {repeat}")
        done += len(numbers)
    return done


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="fuzz the Python entry points, or files for ONNX Runtime")
    parser.add_argument("--seconds", type=float, default=60, help="time (60)")
    parser.add_argument("--seed", type=int, help="number of the first case (random)")
    parser.add_argument("--cases", type=int, help="number of cases (as many as the time allows)")
    parser.add_argument("--batch", action="store_true", help="run the cases in this process")
    parser.add_argument("--files", action="store_true", help="files with the operators for ONNX Runtime, not calls")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    if options.batch:
        run_batch(seed, options.cases or BATCH, options.seconds, options.files)
        return
    print(f"fuzz: seed {seed}, {options.seconds:g} s", flush=True)
    print(f"fuzz: {fuzz(seed, options.seconds, options.cases, options.files)} cases, no failure")


if __name__ == "__main__":
    main()
