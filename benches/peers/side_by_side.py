#!/usr/bin/env python3
"""Prints rows of several benches as one table, by tokens: what `--json` of benches/strategies and of run.py wrote.

usage: side_by_side.py FILE...
"""

import argparse
import json
import pathlib
import sys

# Heading, key, factor and digits of the columns behind mode and tokens.
COLUMNS = [
    ("pass s", "pass_s", 1, 5),
    ("wire s", "wire_floor_s", 1, 5),
    ("compute s", "compute_floor_s", 1, 5),
    ("overlap s", "overlap_floor_s", 1, 5),
    ("/floor", "over_floor", 1, 4),
    ("/bound", "over_bound", 1, 4),
    ("host us", "host_us_per_visit", 1, 2),
    ("stall s", "stall_s", 1, 5),
    ("device GB", "peak_device_bytes", 1e-9, 3),
    ("pinned GB", "pinned_bytes", 1e-9, 3),
]


def read(path):
    """The rows of a file, each with the file's name."""
    try:
        rows = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        refuse(f"{path}: {error}")
    if not isinstance(rows, list):
        refuse(f"{path}: not a list of rows")
    wanted = ["mode", "tokens", *(key for _, key, _, _ in COLUMNS)]
    for index, row in enumerate(rows):
        missing = [key for key in wanted if not isinstance(row, dict) or key not in row]
        if missing:
            refuse(f"{path}: row {index} has no {', '.join(missing)}")
    return [{**row, "from": pathlib.Path(path).stem} for row in rows]


def refuse(reason):
    print(f"side_by_side: {reason}", file=sys.stderr)
    sys.exit(2)


def cells(row):
    """The row's text, a cell a column."""
    numbers = ["-" if row[key] is None else f"{row[key] * factor:.{digits}f}" for _, key, factor, digits in COLUMNS]
    note = "inconclusive" if row.get("inconclusive") else ""
    return [str(row["tokens"]), row["from"], row["mode"], str(row.get("blocks", "-")), *numbers, note]


def table(rows):
    """Lines of a table, groups of equal tokens apart; the order within a group is that of the files."""
    rows = sorted(rows, key=lambda row: row["tokens"])
    head = ["tokens", "from", "mode", "blocks", *(heading for heading, _, _, _ in COLUMNS), ""]
    body = [cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *body)]
    text_columns = (1, 2)

    def line(texts):
        padded = [
            text.ljust(width) if index in text_columns else text.rjust(width)
            for index, (text, width) in enumerate(zip(texts, widths))
        ]
        return "  ".join(padded).rstrip()

    lines = [line(head)]
    for index, texts in enumerate(body):
        if index and rows[index]["tokens"] != rows[index - 1]["tokens"]:
            lines.append("")
        lines.append(line(texts))
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    rows = [row for path in parser.parse_args().files for row in read(path)]
    devices = sorted({str(row["device"]) for row in rows if "device" in row})
    storages = sorted({str(row["storage"]) for row in rows if "storage" in row})
    print(f"device: {', '.join(devices) or 'unknown'}; storage: {', '.join(storages) or 'unknown'}")
    if len(devices) > 1:
        print("not the same device: only ratios of a row to its own floors can be compared")
    if len(storages) > 1:
        print("not the same storage: the rows do not move the same bytes")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
