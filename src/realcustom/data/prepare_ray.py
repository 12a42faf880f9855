"""The same preparation on a Ray cluster: a Ray Data task opens, filters, resizes and writes one block of examples.

The examples themselves are small (paths and captions); pictures are read where they are processed. Ray is imported on
use.
"""

import json
import pickle
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from realcustom.data.prepare import PrepareSettings, Report, write_part
from realcustom.data.shards import write_index
from realcustom.data.sources import RawExample


def prepare_with_ray(
    examples: Iterable[RawExample], folder: str | Path, settings: PrepareSettings | None = None, *, cpus: float = 1.0
) -> Report:
    """Writes real-000-000000.tar, ... into a folder that every node sees, one shard a block of per_shard examples.

    A shard therefore holds per_shard examples less the dropped ones, and repeated pictures are found within a shard
    only. Shards that exist are kept: call it again with the same source and settings to continue. cpus: what one
    task reserves.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("Preparing on Ray needs ray: install realcustom with its extra [ray].") from error

    settings = settings or PrepareSettings()
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    source = iter(examples)
    blocks = []
    while block := list(islice(source, settings.per_shard)):
        blocks.append({"number": len(blocks), "examples": pickle.dumps(block)})
    if not blocks:
        raise ValueError("The source holds no examples.")
    dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks))
    options = {"folder": str(folder), "settings": settings}
    rows = dataset.map(_write_block, fn_kwargs=options, num_cpus=cpus).take_all()
    report = Report()
    for row in sorted(rows, key=lambda row: row["number"]):
        facts = json.loads(row["facts"])
        report.consumed += facts["consumed"]
        report.kept += facts["kept"]
        report.dropped.update(facts["dropped"])
        if facts["kept"]:
            report.shards.append(folder / f"real-{_stem(row['number'])}.tar")
    write_index(folder)
    return report


def _write_block(row: dict, folder: str, settings: PrepareSettings) -> dict:
    stem = _stem(row["number"])
    sidecar = Path(folder) / f"part-{stem}.json"
    if sidecar.is_file() and (Path(folder) / f"real-{stem}.tar").is_file():
        return {"number": row["number"], "facts": sidecar.read_text()}
    facts = write_part(iter(pickle.loads(row["examples"])), Path(folder), stem, settings, set())
    return {"number": row["number"], "facts": json.dumps(facts)}


def _stem(number: int) -> str:
    return f"000-{number:06d}"
