"""Section of docs/results.md: images a second of the loader (`layerwise bench data`)."""

from __future__ import annotations

from pages.files import commands, machines, results


def section() -> list[str]:
    """One table for all augmentations."""
    found = results("data")
    lines = [
        "## The data path\n",
        "| augmentation | memory format | threads | images/s |",
        "|---|---|--:|--:|",
    ]
    for r in found:
        kinds = ("flip", "crop", "resized_crop", "cutout")
        augment = [
            k if v is True else f"{k} {v}" for k, v in r["augment"].items() if k in kinds and v
        ]
        form = "channels_last" if r["channels_last"] else "contiguous"
        lines.append(
            f"| {', '.join(augment) or 'none'} | {form} | {r['threads']} | {r['images_per_s']:,} |"
        )
    shape = "x".join(map(str, found[0]["shape"]))
    return [
        "\n".join(lines) + f"\n\nImages of {shape}, batches of {found[0]['batch_size']}, "
        f"{machines(found)}.\n\n{commands([r['command'] for r in found])}"
    ]
