"""The run of the fuzz: batches of cases, each batch in a process of its own, so that a crash is seen and named.

python tests/fuzz/run.py --seconds 60 --seed 7     # cases 7, 8, 9, ... until the time is over
python tests/fuzz/run.py --seed 12345 --cases 1    # one case again
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
    """Draw a case and judge it; every fourth one has a wrong argument."""
    from fuzz_cases import draw
    from judge import judge
    from wrong_arguments import judge_refusal

    call = draw(number)
    try:
        (judge_refusal if number % 4 == 0 else judge)(call, number)
    except Exception as error:
        error.add_note(f"case {number}: {call}")
        raise


def run_batch(first: int, count: int, seconds: float) -> None:
    """Run cases in this process, and print each one's number before it; stop when the time is over."""
    import torch

    torch.set_num_threads(2)
    warnings.simplefilter("ignore")  # of torch, about the layouts that are drawn
    end = time.monotonic() + seconds
    for number in range(first, first + count):
        print(number, flush=True)
        run_case(number)
        if time.monotonic() > end:
            return


def fuzz(seed: int, seconds: float, cases: int | None) -> int:
    """Run batches until the time is over or one fails; return how many cases ran, or raise `SystemExit`."""
    end, done = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0 and (cases is None or done < cases):
        count = BATCH if cases is None else min(BATCH, cases - done)
        command = [sys.executable, __file__, "--batch", "--seed", str(seed + done), "--cases", str(count)]
        try:
            batch = subprocess.run(
                [*command, "--seconds", str(left)], capture_output=True, text=True, check=False, timeout=left + HANGS
            )
        except subprocess.TimeoutExpired as error:
            last = (error.stdout or b"").split()[-1:] or [seed + done]
            raise SystemExit(
                f"fuzz: case {int(last[0])} hangs; repeat it: make fuzz SEED={int(last[0])} CASES=1"
            ) from error
        numbers = batch.stdout.split()
        if batch.returncode:
            last = numbers[-1] if numbers else seed + done
            how = f"signal {-batch.returncode}" if batch.returncode < 0 else f"status {batch.returncode}"
            again = f"repeat it: make fuzz SEED={last} CASES=1"
            raise SystemExit(f"{batch.stderr}\nfuzz: case {last} ended with {how}; {again}")
        done += len(numbers)
    return done


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="fuzz the Python entry points")
    parser.add_argument("--seconds", type=float, default=60, help="time (60)")
    parser.add_argument("--seed", type=int, help="number of the first case (random)")
    parser.add_argument("--cases", type=int, help="number of cases (as many as the time allows)")
    parser.add_argument("--batch", action="store_true", help="run the cases in this process")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    if options.batch:
        run_batch(seed, options.cases or BATCH, options.seconds)
        return
    print(f"fuzz: seed {seed}, {options.seconds:g} s", flush=True)
    print(f"fuzz: {fuzz(seed, options.seconds, options.cases)} cases, no failure")


if __name__ == "__main__":
    main()
