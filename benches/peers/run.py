#!/usr/bin/env python3
"""Runs the work of benches/strategies through other systems: torch alone, and diffusers' group offloading.

The matrices of 20 blocks of a WAN 14B transformer, products only, seeded random data. Each row is timed over --passes
passes back to back, drained at both ends. Rows and floors alternate for --rounds rounds, each round in the other order, and
before each the device multiplies for a second: a card that was idle is cool and faster. Medians are printed, over the
overlap floor that of the ratios of each round, and a row says `inconclusive` where these scatter by more than 0.2 %.
Floors, each measured in the same rounds:

  wire      the pass's bytes in bare uploads of one block each
  compute   the same pass with everything resident
  overlap   the same products and uploads on their streams with no event between them

Before a row is timed its products are compared with the resident ones, bit for bit. Where torch or a GPU is missing it
says so and ends with status 0; where diffusers is missing, it says so and leaves out its rows.
"""

import argparse
import gc
import json
import statistics
import sys

# Scatter of the rounds above which a row proves nothing.
SCATTER = 0.002

# Passes over which the products alone are timed, at most.
COMPUTE_PASSES = 10

MODES = {
    "resident": ("Resident", {}),
    "torch, one block ahead, pinned": ("OneAhead", {}),
    "diffusers, block level, stream + record_stream": (
        "Groups",
        {"offload_type": "block_level", "record_stream": True},
    ),
    "diffusers, block level, stream": ("Groups", {"offload_type": "block_level", "record_stream": False}),
    "diffusers, leaf level, stream + record_stream": (
        "Groups",
        {"offload_type": "leaf_level", "record_stream": True},
    ),
}


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def tokens_count(text):
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is not 0 or more")
    return number


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=positive, help="blocks of the model (20)")
    parser.add_argument(
        "--tokens",
        type=tokens_count,
        action="append",
        help="tokens that are multiplied by each matrix (256, 2048, 8192, 0, 16384); 0 is where the wire takes as long "
        "as the products",
    )
    parser.add_argument("--passes", type=positive, help="passes in a measurement (10)")
    parser.add_argument("--rounds", type=positive, help="measurements of each row (3)")
    parser.add_argument("--mode", action="append", choices=MODES, help="rows to measure; all if none is named")
    parser.add_argument("--json", metavar="FILE", help="writes the rows to a file")
    parser.add_argument("--quick", action="store_true", help="unless told otherwise, each row once on two blocks")
    arguments = parser.parse_args()
    blocks, tokens, passes, rounds = (2, [256], 2, 1) if arguments.quick else (20, [256, 2048, 8192, 0, 16384], 10, 3)
    arguments.blocks = arguments.blocks or blocks
    arguments.tokens = arguments.tokens or tokens
    arguments.passes = arguments.passes or passes
    arguments.rounds = arguments.rounds or rounds
    arguments.mode = arguments.mode or list(MODES)
    return arguments


def header():
    names = ["mode", "tokens", "pass s", "wire s", "compute s", "overlap s", "/floor", "/bound", "host us", "peak GB"]
    print("{:46} {:>6} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7} {:>7}".format(*names), flush=True)


def print_row(row):
    host_us = "-" if row["host_us_per_visit"] is None else f"{row['host_us_per_visit']:.2f}"
    print(
        f"{row['mode']:46} {row['tokens']:>6} {row['pass_s']:>9.5f} {row['wire_floor_s']:>9.5f} "
        f"{row['compute_floor_s']:>9.5f} {row['overlap_floor_s']:>9.5f} {row['over_floor']:>7.4f} "
        f"{row['over_bound']:>7.4f} {host_us:>7} {row['peak_device_bytes'] * 1e-9:>7.3f}"
        + (" inconclusive" if row["inconclusive"] else ""),
        flush=True,
    )


def same(torch, expected, results):
    return len(expected) == len(results) and all(map(torch.equal, expected, results))


def measure_row(torch, ways, work, name, tokens, arguments):
    """A row, or nothing where the way computes something else."""
    kind, options = MODES[name]
    gc.collect()
    torch.cuda.empty_cache()
    expected = work.results(ways.Resident(work))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way = getattr(ways, kind)(work, **options)
    # The first pass is not like the others: diffusers learns the order in it.
    work.timed(way.run, 3)
    peak_bytes = torch.cuda.max_memory_allocated() - before
    if not same(torch, expected, work.results(way)):
        print(f"{name}: not measured: its products at {tokens} tokens differ from the resident ones", flush=True)
        return None
    del expected
    host_us = way.host_us_per_visit()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    wire, compute, overlap, passes = [], [], [], []
    for number in range(arguments.rounds):
        turns = [
            lambda: overlap.append(work.overlap_s(way.uploads, arguments.passes)),
            lambda: passes.append(work.timed(way.run, arguments.passes)),
        ]
        for turn in turns if number % 2 == 0 else reversed(turns):
            work.warm_up()
            turn()
        work.warm_up()
        compute.append(work.compute_s(min(arguments.passes, COMPUTE_PASSES)))
        wire.append(work.wire_s(way.uploads, 2))
    over_floors = [a_pass / floor for a_pass, floor in zip(passes, overlap)]
    peak_bytes = max(peak_bytes, torch.cuda.max_memory_allocated() - before)
    digits = lambda samples: [round(sample, 5) for sample in samples]
    print(f"  {name}: passes {digits(passes)} overlap {digits(overlap)} compute {digits(compute)}", file=sys.stderr)
    pass_s, wire_s = statistics.median(passes), statistics.median(wire)
    compute_s, overlap_s = statistics.median(compute), statistics.median(overlap)
    return {
        "mode": name,
        "device": torch.cuda.get_device_name(),
        "storage": "bf16",
        "blocks": arguments.blocks,
        "tokens": tokens,
        "pass_s": pass_s,
        "wire_floor_s": wire_s,
        "compute_floor_s": compute_s,
        "overlap_floor_s": overlap_s,
        "over_floor": statistics.median(over_floors),
        "over_floors": over_floors,
        "over_bound": pass_s / max(wire_s, compute_s),
        "predicted_pass_s": None,
        "host_us_per_visit": host_us,
        "stall_s": None,
        "peak_device_bytes": way.held_bytes + peak_bytes,
        "pinned_bytes": len(way.uploads) * work.block_bytes,
        "inconclusive": (max(over_floors) - min(over_floors)) / statistics.median(over_floors) > SCATTER,
    }


def measure(torch, ways, arguments):
    """The rows, each as soon as it is measured."""
    modes = list(arguments.mode)
    wants_diffusers = [name for name in modes if MODES[name][0] == "Groups"]
    reason = ways.missing_diffusers() if wants_diffusers else None
    if reason:
        print(f"peers: not measured: {'; '.join(wants_diffusers)}: {reason}")
        modes = [name for name in modes if name not in wants_diffusers]
    elif wants_diffusers:
        import diffusers

        print(f"diffusers {diffusers.__version__}", file=sys.stderr)
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}", file=sys.stderr)
    work = ways.Work(arguments.blocks)
    header()
    for tokens in arguments.tokens:
        tokens = tokens or work.crossing()
        work.set_tokens(tokens)
        work.compute_s(3)
        for name in modes:
            row = measure_row(torch, ways, work, name, tokens, arguments)
            if row:
                print_row(row)
                yield row


def save(path, rows):
    if not path:
        return
    try:
        with open(path, "w") as file:
            json.dump(rows, file, indent=2)
    except OSError as error:
        sys.exit(f"peers: {error}")


def main():
    arguments = parse()
    try:
        import torch
    except ImportError as error:
        print(f"peers: nothing is measured: torch cannot be imported: {error}")
        return
    if not torch.cuda.is_available():
        print(f"peers: nothing is measured: torch {torch.__version__} finds no GPU")
        return
    import ways

    torch.set_grad_enabled(False)
    rows = []
    save(arguments.json, rows)
    for row in measure(torch, ways, arguments):
        rows.append(row)
        # After every row: a run that is ended early keeps what it has.
        save(arguments.json, rows)


if __name__ == "__main__":
    main()
