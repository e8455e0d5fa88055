"""Plans as a markdown table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

GIB = 2**30


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the records: one row per quantity, one column per target."""
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "devices": lambda r: f"{r['num_devices']:,}",
        "batch, images a device and step": lambda r: (
            f"{r['batch_size']:,}, {2 * r['batch_size'] // r['num_devices']:,}"
        ),
        "precision": lambda r: r["dtype"],
        "parameters": lambda r: f"{r['parameters']['all'] / 1e6:,.2f} M",
        "state a device": lambda r: f"{r['state_bytes'] / GIB:.2f} GiB",
        "FLOP a device": lambda r: f"{r['flops'] / 1e12:.3g} T",
        "memory traffic a device": lambda r: f"{r['memory_traffic_bytes'] / 1e9:.4g} GB",
        "bytes accessed, as the compiler counts": lambda r: f"{r['bytes_accessed'] / 1e9:.4g} GB",
        "memory a device": _memory,
        "fits": lambda r: {True: "yes", False: "no", None: "unknown"}[r["fits"]],
        "collectives": lambda r: (
            ", ".join(f"{found['count']} {kind}" for kind, found in r["collectives"].items()) or "none"
        ),
        "collective bytes, over the minimum": lambda r: (
            f"{r['collective_bytes'] / 1e6:,.4g} MB, {r['collective_bytes_over_minimum']:.3f}"
        ),
        "estimate: computing": lambda r: _milliseconds(r, "compute_seconds"),
        "estimate: memory": lambda r: _milliseconds(r, "memory_seconds"),
        "estimate: collectives": lambda r: _milliseconds(r, "collective_seconds"),
        "estimate: step": lambda r: _milliseconds(r, "step_seconds"),
        "estimate: bound by": lambda r: r["estimate"]["bound"],
        "estimate: images a second": lambda r: f"{r['estimate']['images_per_second']:,.0f}",
        "estimate: utilization of FLOP/s": lambda r: f"{r['estimate']['flop_utilization']:.0%}",
        "largest batch that fits": lambda r: f"{r['largest_batch']['batch_size']:,}",
    }
    lines = [["", *(record["target"] for record in records)], ["---"] * (len(records) + 1)]
    for name, text_of in rows.items():
        cells = [_cell(text_of, record) for record in records]
        if any(cells):
            lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text_of: Callable[[Mapping[str, Any]], str], record: Mapping[str, Any]) -> str:
    # The record of a step that does not fit has no compiled program, and a CPU has no published rates.
    try:
        return text_of(record)
    except KeyError:
        return ""


def _memory(record: Mapping[str, Any]) -> str:
    needed = f"{record['memory_bytes']['all'] / GIB:.2f}"
    chip = record["chip"]
    return f"{needed} GiB" if chip is None else f"{needed} of {chip['memory_bytes'] / GIB:.0f} GiB"


def _milliseconds(record: Mapping[str, Any], part: str) -> str:
    return f"{1000 * record['estimate'][part]:.3g} ms"
