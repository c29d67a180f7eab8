"""What Secateurs does with the networks that people use: one row per network, each in a process of its own.

    make coverage                                                         # all of it, in an environment of its own
    python benchmarks/coverage.py --out coverage --quick
    python benchmarks/coverage.py --out coverage --family torchvision --family smp
    python benchmarks/coverage.py --out coverage --only '*resnet*' --again
    python benchmarks/coverage.py --out coverage --family peers           # torch-pruning on the same networks
    python benchmarks/coverage.py --out coverage --markdown > table.md
    python benchmarks/coverage.py --out coverage --page docs/coverage.md  # the same, in place of what the page has

Networks are taken from all families at the same pace, the smallest of each first, so that a run that ends early (--minutes) has
had a part of each.

A row holds: how many channel groups can be cut; the share of the MACs that goes when each of them keeps one channel; the
difference between the sliced and the masked network after a random 40% of all their channels are cut, with random batch-norm
statistics; whether the cost from the graph is the counted one; CPU time of a trace over that of a forward, of each not
the first; the reasons.

Rows are JSON files in --out, one per network; what is there is not run again. A process that crashes, runs out of memory or
exceeds its CPU time is a row, too. Networks have random weights: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage_networks import FAMILIES, QUICK, Network
from coverage_table import markdown, write_page
from rich.console import Console
from torch import nn

import secateurs as sc
from secateurs.graph.inputs import call
from secateurs.graph.reasons import Kind
from secateurs.testing.networks import randomize

CUT = 0.4
PEERS = "peers"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "ultralytics", "segmentation-models-pytorch", "monai",
            "diffusers", "torchaudio", "spandrel", "torch-pruning")  # fmt: skip
Record = dict[str, Any]


class Row:
    """A network's record on disk. What has been measured is there even if the process dies at the next step."""

    def __init__(self, path: Path, **start: Any) -> None:
        self.path, self.record = path, dict(start)

    def update(self, **found: Any) -> None:
        self.record.update(found)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.record, indent=1))
        new.replace(self.path)

    def fail(self, status: str, error: BaseException) -> None:
        place = traceback.extract_tb(error.__traceback__)
        lines = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in place[-6:]]
        self.update(status=status, error=f"{type(error).__name__}: {error}"[:1500], traceback=lines)


def measure(network: Network, row: Row) -> None:
    """Fill the row. `status` is what failed, or "ok"."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    row.update(status="crash", step="build")
    try:
        model, inputs = network.build()
        model = everything_matters(model).eval()
        row.update(step="run", params=sum(p.numel() for p in model.parameters()))
        gc.collect()
        gc.freeze()  # a collection of all that the packages hold takes longer than many a trace
        with torch.no_grad():
            forward = cpu_time(lambda: call(model, inputs))
    except Exception as error:
        row.fail("not built" if row.record["step"] == "build" else "does not run", error)
        return
    try:
        row.update(step="trace")
        traces: list[sc.ChannelGraph] = []
        seconds = cpu_time(lambda: traces.append(sc.trace(model, inputs)))
        first, *_, graph = traces
        row.update(step="groups", forward_ms=1e3 * forward, trace_ms=1e3 * seconds, **groups(graph))
        if summary(first) != summary(graph):
            row.update(status="ambiguous", error="two traces found different groups")
            return
        keep = draw(graph)
        plan, cut = graph.plan(keep), graph.cost({name: len(kept) for name, kept in keep.items()})
        row.update(step="verify", left=cut.macs / max(graph.cost().macs, 1))
        error = sc.verify(model, plan, inputs)
        row.update(step="count", difference=error)
        due, found = (graph.cost(), cut), (sc.count(model, inputs), sc.count(sc.apply(model, plan), inputs))
        row.update(status="ok" if due == found else "cost differs", step="done")
        if due != found:
            row.update(error=f"whole and cut: {due} from the graph, {found} counted")
    except sc.VerificationError as error:
        row.fail("mismatch", error)
    except sc.TraceError as error:
        row.fail("refused", error)
    except MemoryError as error:
        row.fail("memory", error)
    except Exception as error:
        row.fail("crash", error)


@torch.no_grad()
def everything_matters(model: nn.Module) -> nn.Module:
    """Random batch-norm statistics, and random values where all of a parameter's are the same: a layer scale of zero would
    let any cut pass."""
    for p in randomize(model).parameters():
        if p.numel() > 1 and p.is_floating_point() and bool((p == p.flatten()[0]).all()):
            p.normal_(0, 0.1) if float(p.flatten()[0]) == 0 else p.uniform_(0.5, 1.5)
    return model


def cpu_time(run: Callable[[], Any], least: float = 0.1) -> float:
    """Seconds of a run, after a first one: the mean over `least` seconds, as the clock may tick slowly."""
    runs = 0
    run()
    start = time.process_time()
    while (spent := time.process_time() - start) < least:
        run()
        runs += 1
    return spent / runs


def draw(graph: sc.ChannelGraph) -> dict[str, list[int]]:
    """A random 60% of the channels of every prunable group."""
    rng = np.random.default_rng(0)
    return {
        g.name: sorted(rng.permutation(g.size)[: max(g.least, round((1 - CUT) * g.size))].tolist())
        for g in graph.groups if g.prunable
    }  # fmt: skip


def summary(graph: sc.ChannelGraph) -> list[tuple[str, int, bool]]:
    return [(g.name, g.size, g.prunable) for g in graph.groups]


def groups(graph: sc.ChannelGraph) -> Record:
    total = graph.cost()
    lowest = graph.cost({g.name: 1 for g in graph.groups if g.prunable})
    with_inexact = graph.cost({g.name: 1 for g in graph.groups if g.prunable or g.only_inexact})
    reasons: dict[str, dict[str, int]] = {}
    for group in graph.groups:
        if group.reason is not None:
            found = reasons.setdefault(group.reason.kind.name, {})
            found[str(group.reason)] = found.get(str(group.reason), 0) + 1
    return {
        "groups": len(graph.groups),
        "prunable": sum(g.prunable for g in graph.groups),
        "outputs": sum(g.reason is not None and g.reason.kind is Kind.OUTPUT for g in graph.groups),
        "macs": total.macs,
        "reachable": 1 - lowest.macs / max(total.macs, 1),
        "reachable_inexact": 1 - with_inexact.macs / max(total.macs, 1),
        "reasons": reasons,
    }


def measure_peer(network: Network, row: Row) -> None:
    """torch-pruning on this network: 40% of all channels, the layers that make the outputs left out."""
    import torch_pruning as tp

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    row.update(status="crash", step="build", version=metadata.version("torch-pruning"))
    try:
        model, inputs = network.build()
        model.eval()
        call(model, inputs)
        whole = sc.count(model, inputs).macs
        keep_whole = last_layers(model, inputs)
    except Exception as error:
        row.fail("not built", error)
        return
    try:
        row.update(step="prune", macs=whole)
        pruner = tp.pruner.BasePruner(
            model, inputs, tp.importance.RandomImportance(), pruning_ratio=CUT, ignored_layers=keep_whole
        )
        pruner.step()
        row.update(step="run")
        call(model, inputs)
        row.update(status="ok", step="done", left=sc.count(model, inputs).macs / max(whole, 1))
    except Exception as error:
        row.fail("fails", error)


def last_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """The layers that make the outputs, which torch-pruning has to be told."""
    modules = dict(model.named_modules())
    try:
        graph = sc.trace(model, inputs)
    except sc.SecateursError:
        return [m for m in modules.values() if isinstance(m, nn.Linear)][-1:]
    return [
        modules[name]
        for g in graph.groups if g.reason is not None and g.reason.kind is Kind.OUTPUT
        for name in g.producers if name in modules
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- one process a network


def limited(work: Callable[[Network, Row], None], network: Network, row: Row, seconds: int, gigabytes: float) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if gigabytes:
        resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    work(network, row)


def run(work: Callable[[Network, Row], None], network: Network, path: Path, seconds: int, gigabytes: float) -> Record:
    """Measure a network in a process of its own: forked, so that it starts with the packages imported."""
    row = Row(path, family=network.family, name=network.name, machine=machine())
    row.update(status="crash", step="start")
    start = time.monotonic()
    child = multiprocessing.get_context("fork").Process(target=limited, args=(work, network, row, seconds, gigabytes))
    child.start()
    child.join(4 * seconds)  # of a shared machine; the limit is on CPU time
    hung = child.is_alive()
    if hung:
        child.kill()
        child.join()
    row.record = json.loads(path.read_text())
    if child.exitcode:
        late = hung or child.exitcode in (-24, -9)  # SIGXCPU, SIGKILL
        row.update(
            status="hang" if late else "crash", error=f"ended with {child.exitcode} in step {row.record['step']}"
        )
    row.update(wall=round(time.monotonic() - start, 1))
    return row.record


def machine() -> Record:
    return {
        "date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "processor": processor(),
        "secateurs": sc.__version__, "revision": REVISION,
    }  # fmt: skip


def revision() -> str:
    """The commit that runs, if it is known."""
    git = ["git", "-C", str(Path(sc.__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


REVISION = revision()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def listed(args: argparse.Namespace, folder: Path, console: Console) -> dict[str, list[Network]]:
    """The networks by family, with a note of how many there are: the page says how many have not run."""
    path = folder / "listed.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, list[Network]] = {}
    for family in [f for f in args.family if f != PEERS] or (list(QUICK) if args.quick else list(FAMILIES)):
        try:
            found[family] = FAMILIES[family]()
        except (ImportError, OSError, sc.SpecError) as error:
            console.print(f"{family}: {error}")
            continue
        known[family] = [network.name for network in found[family]]
    path.write_text(json.dumps(known, indent=1))
    return found


def chosen(args: argparse.Namespace, families: dict[str, list[Network]]) -> list[Network]:
    """Those to run, from all families at the same pace."""
    found = []
    for family, networks in families.items():
        for i, network in enumerate(networks):
            named = any(fnmatch.fnmatch(network.name, pattern) for pattern in args.only or ["*"])
            if named and (not args.quick or network.name in QUICK.get(family, [])):
                found.append((i / len(networks), network))
    return [network for _, network in sorted(found, key=lambda item: item[0])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("coverage"), help="folder of the rows")
    parser.add_argument(
        "--family", action="append", choices=[*FAMILIES, PEERS], default=[], help="default: all but peers"
    )
    parser.add_argument("--only", action="append", metavar="GLOB", help="names of networks; repeatable")
    parser.add_argument("--quick", action="store_true", help="a handful of small networks")
    parser.add_argument("--again", action="store_true", help="also what has a row")
    parser.add_argument("--failed", action="store_true", help="again what failed")
    parser.add_argument("--seconds", type=int, default=300, help="CPU time of a network")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no network after these")
    parser.add_argument("--memory", type=float, default=16, help="gigabytes of address space of a network; 0: no limit")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the rows in --out, run nothing")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write them into a page, from its line '## What has run' on"
    )
    args = parser.parse_args()
    if args.markdown:
        print(markdown(args.out))
    if args.page:
        write_page(args.page, args.out)
    if args.markdown or args.page:
        return
    console, peers = Console(highlight=False, soft_wrap=True), PEERS in args.family
    work, folder = (measure_peer, args.out / PEERS) if peers else (measure, args.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "versions.json").write_text(json.dumps(versions(), indent=1))
    ratios, start = [], time.monotonic()
    for network in chosen(args, listed(args, folder, console)):
        path = folder / network.family / f"{network.name}.json"
        if path.exists() and not args.again:
            known = json.loads(path.read_text())
            finished = "wall" in known  # or this process was ended before the network's
            if finished and not (args.failed and known["status"] != "ok"):
                continue
        if time.monotonic() - start > 60 * args.minutes:
            break
        record = run(work, network, path, args.seconds, args.memory)
        console.print(line(record))
        if "trace_ms" in record:
            ratios.append(record["trace_ms"] / record["forward_ms"])
        sys.stdout.flush()
    if ratios:
        console.print(f"trace over forward: median {statistics.median(ratios):.1f}, largest {max(ratios):.1f}")


def line(record: Record) -> str:
    text = f"{record['family']} {record['name']}: {record['status']}"
    if "reachable" in record:
        text += f", {record['prunable']} of {record['groups']} groups, {record['reachable']:.0%} of the MACs"
        text += f", trace {record['trace_ms']:.0f} ms = {record['trace_ms'] / record['forward_ms']:.1f} forwards"
    if "difference" in record:
        text += f", {record['difference']:.0e}"
    if record["status"] != "ok":
        text += f" [{record.get('step')}] {record.get('error', '')[:300]}"
    return f"{text} ({record['wall']:.0f} s)"


if __name__ == "__main__":
    main()
