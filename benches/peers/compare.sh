#!/usr/bin/env bash
# Runs the bench `strategies` and the same work through other systems, and prints both side by side. Needs a GPU, and a
# python3 with torch; see README.md beside this file.
#
# usage: benches/peers/compare.sh [--blocks N] [--tokens N]... [--passes N] [--rounds N]
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$PWD/target/peers
mkdir -p "$folder"
rm -f "$folder/strategies.json" "$folder/peers.json"
cargo bench --bench strategies -- --json "$folder/strategies.json" "$@"
python3 benches/peers/run.py --json "$folder/peers.json" "$@"
for rows in strategies peers; do
    if [ ! -e "$folder/$rows.json" ]; then
        echo "compare: $rows measured nothing: nothing is compared"
        exit 0
    fi
done
python3 benches/peers/side_by_side.py "$folder/strategies.json" "$folder/peers.json"
