#!/usr/bin/env python3
"""Print what measure.py wrote: medians [smallest..largest], ratios of medians, targets.

usage: report.py RESULTS [--only SCENARIO] [--json FILE] [--machine FILE]
"""
import argparse
import json
import statistics

MIB = 1 << 20
# A run beside which other programs used more than this share of one CPU is marked: its wall time says little.
DISTURBED = 0.15
# (scenario, column) to the highest ratio of ours to the reference.
RATIO_TARGETS = {
    ("fresh", "wall"): 0.32,
    ("fresh", "cpu"): 0.50,
    ("cold", "wall"): 0.32,
    ("cold", "cpu"): 0.50,
    ("incremental", "wall"): 0.28,
    ("cold-incremental", "wall"): 0.28,
    ("noop", "wall"): 1.0,
    ("latency", "wall"): 0.25,
    ("merge", "wall"): 0.03,
}
# Bytes, for every run of ours.
PEAK_TARGET = 192 * MIB
TITLES = {
    "fresh": "fresh: v1 into an empty repository",
    "incremental": "incremental: v2 where v1 is",
    "noop": "no-op: v1 where v1 is",
    "cold": "fresh, with a cold page cache",
    "cold-incremental": "incremental, with a cold page cache",
    "latency": "fresh, 64 layers, 50 ms before every request",
    "latency-small": "the same with 64 small layers (2,000 files): latency and nothing else",
    "merge": "merge: v1 and one small layer, everything there but the result; less a no-op of the same",
}
COLUMNS = (
    ("wall", "wall s", 1, "{:.2f}"),
    ("cpu", "CPU s", 1, "{:.2f}"),
    ("kernel", "kernel s", 1, "{:.2f}"),
    ("peak", "peak MiB", MIB, "{:.0f}"),
    ("written", "written MiB", MIB, "{:.0f}"),
)


def load(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def with_merge(runs):
    """The merge alone: each run less the no-op that followed it."""
    after = {}
    for r in runs:
        if r["scenario"] == "merge-noop":
            after.setdefault(r["tool"], []).append(r)
    out = []
    for r in runs:
        if r["scenario"] == "merge" and after.get(r["tool"]):
            noop = after[r["tool"]].pop(0)
            r = r | {k: max(0.001, r[k] - noop[k]) for k in ("wall", "cpu")} | {"with_noop": r["wall"]}
        if r["scenario"] != "merge-noop":
            out.append(r)
    return out


def spread(values, scale, form):
    values = [v / scale for v in values]
    text = form.format(statistics.median(values))
    if len(values) > 1:
        text += " [" + form.format(min(values)) + ".." + form.format(max(values)) + "]"
    return text


def verdict(value, target):
    return "met" if value <= target else "MISSED"


def table(scenario, runs):
    """Prints one scenario, returns its ratios."""
    print(f"\n{TITLES.get(scenario, scenario)}")
    rows = [[""] + [title for _, title, _, _ in COLUMNS] + ["others/wall"]]
    medians, ratios = {}, {}
    for tool in ("reference", "ours"):
        mine = [r for r in runs if r["tool"] == tool]
        if not mine:
            continue
        medians[tool] = {key: statistics.median(r[key] for r in mine) for key, _, _, _ in COLUMNS if key in mine[0]}
        shares = [r["others"] / max(r["wall"], 0.1) for r in mine]
        disturbed = sum(s > DISTURBED for s in shares)
        rows.append(
            [f"{tool} ({len(mine)})"]
            + [spread([r[key] for r in mine], scale, form) if key in mine[0] else "" for key, _, scale, form in COLUMNS]
            + [spread(shares, 1, "{:.2f}") + (f"  {disturbed} of {len(mine)} disturbed" if disturbed else "")]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if len(medians) < 2:
        return ratios
    for key in ("wall", "cpu", "written"):
        if medians["reference"].get(key):
            ratios[key] = medians["ours"][key] / medians["reference"][key]
    said = []
    for key, ratio in ratios.items():
        target = RATIO_TARGETS.get((scenario, key))
        said.append(f"{key} {ratio:.3f}" + (f" (target {target:.2f}: {verdict(ratio, target)})" if target else ""))
    print("  ours / reference: " + ", ".join(said))
    peak = max(r["peak"] for r in runs if r["tool"] == "ours")
    print(f"  highest peak of ours: {peak / MIB:.0f} MiB (target {PEAK_TARGET / MIB:.0f}: {verdict(peak, PEAK_TARGET)})")
    return ratios


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("results")
    p.add_argument("--only")
    p.add_argument("--json")
    p.add_argument("--machine")
    a = p.parse_args()
    runs = with_merge(load(a.results))
    ratios, machine = {}, {}
    if a.machine:
        with open(a.machine, encoding="utf-8") as f:
            machine = dict(line.rstrip("\n").split("=", 1) for line in f)
        for key, value in machine.items():
            print(f"{key}: {value}")
    for scenario in dict.fromkeys(r["scenario"] for r in runs):
        mine = [r for r in runs if r["scenario"] == scenario]
        if a.only and scenario != a.only:
            continue
        if scenario == "floor":
            print("\nfloor: what this machine needs for the parts of a fresh pull of v1")
            for part in dict.fromkeys(r["tool"] for r in mine):
                of = [r for r in mine if r["tool"] == part]
                walls, cpus = [r["wall"] for r in of], [r["cpu"] for r in of]
                print(f"  {part:12} wall {spread(walls, 1, '{:.2f}')}, CPU {spread(cpus, 1, '{:.2f}')}")
        elif scenario.startswith("fsyncs"):
            print(f"\n{scenario}: calls in one traced run")
            for r in mine:
                calls = ", ".join(f"{n} {call}" for call, n in r["calls"].items()) or "none"
                print(f"  {r['tool']:9} {calls}")
        else:
            ratios[scenario] = table(scenario, mine)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump({"machine": machine, "ratios": ratios, "runs": runs}, f, indent=1)


if __name__ == "__main__":
    main()
