"""Whether two versions of the kit give the same answers, number for number.

    python benchmarks/same_answers.py write before     # in the one version
    python benchmarks/same_answers.py write after      # in the other, same environment and machine
    python benchmarks/same_answers.py compare before after

`write` runs `vitspec check` and `vitspec diagnose` on implementations that conform and on some that
do not, over every kind of check, and keeps their JSON. `compare` lists what differs, except what
must differ from run to run (`seconds`, `environment`) and what a later version says better on
purpose (`reproduce`). Exit code 1 if anything is left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPECIFICATION = """
from vitspec.testing.reference import SpecImplementation

vit, vit_cls = SpecImplementation("vit"), SpecImplementation("vit-cls")
practical = SpecImplementation("vision-transformer")
bfloat16, float16 = SpecImplementation("vit", "bfloat16"), SpecImplementation("vit-cls", "float16")


class ForwardOnly:
    name, version, spec, dtype = "forward-only", "1", "vit", "float32"
    forward = staticmethod(SpecImplementation("vit").forward)

    def supports(self, config):
        return "wide" if config.embed_dim > 9 else None


forward_only = ForwardOnly()


class Other:
    name, version, spec, dtype = "other", "1", "other", "float64"

    def example(self, rng):
        params = {"w": rng.standard_normal((6, 3)), "b": rng.standard_normal(3)}
        return None, params, rng.standard_normal((4, 6))

    def forward(self, config, params, images):
        return (images @ params["w"] + params["b"]) ** 2

    def vjp(self, config, params, images, cotangent):
        d = 2 * (images @ params["w"] + params["b"]) * cotangent
        return {"w": images.T @ d, "b": d.sum(0)}, d @ params["w"].T


class Wrong(Other):
    name = "wrong"

    def vjp(self, config, params, images, cotangent):
        grads, d_images = super().vjp(config, params, images, cotangent)
        return grads | {"b": grads["b"] * (1 + 1e-9)}, d_images


other, wrong = Other(), Wrong()
"""

CHECKS = (
    "spec.py:vit", "spec.py:vit --dtype float64 --seed 3", "spec.py:vit_cls --seed 1",
    "spec.py:practical", "spec.py:practical --dtype float64 --seed 2",
    "spec.py:bfloat16 --no-photograph", "spec.py:float16 --no-photograph",
    "spec.py:forward_only --no-photograph",
    "spec.py:vit --identities --laws 8", "spec.py:vit_cls --identities --dtype float64",
    "spec.py:practical --identities --laws 6 --dtype float64", "spec.py:bfloat16 --identities",
    "spec.py:other --identities", "spec.py:wrong --identities",
    "spec.py:vit --config embed_dim=6,hidden_dim=8,head_count=2,num_layers=2,num_classes=3,"
    "patch_h=2,patch_w=2,stride=2",
    "spec.py:practical --config d2l,num_layers=1,image_h=32,image_w=32,embed_dim=12,head_count=2,"
    "hidden_dim=10,num_classes=3",
    "planted:pre-norm --no-photograph", "planted:attention-gradient-scale-twice --seed 5",
    "planted:attention-gradient-scale-twice --identities --dtype float64",
    "planted:mean-pool-sums,channels-reversed --dtype float64 --no-photograph",
    "planted:gelu-tanh --no-photograph", "planted:cubic-a-half --only interpolation.*",
    "planted:key-bias-gets-query-gradient --no-photograph --dtype float64",
    "vitfast", "vitfast-cls --seed 4 --dtype float64",
    "vitfast.implementation:vision_transformer --no-photograph",
    "vitfast.implementation:vision_transformer --identities",
    "vitspec.testing.adapters.peers:torch_vit_cls --no-photograph",
    "vitspec.testing.adapters.peers:torch_vit_cls --dtype float64 --no-photograph --seed 2",
    "transformers-eager --no-photograph",
)  # fmt: skip
DIAGNOSES = (
    "spec.py:vit", "planted:pre-norm", "planted:value-weight-gets-key-gradient --seed 2",
    "planted:gelu-tanh", "planted:mean-pool-sums,layer-norm-eps-1e-5 --dtype float64",
    "planted:softmax-not-shifted",
)  # fmt: skip
LEFT_OUT = {"seconds", "environment", "reproduce"}


def write(folder: Path) -> None:
    """Run everything, and keep what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.py").write_text(SPECIFICATION)
    for command, lines in (("check", CHECKS), ("diagnose", DIAGNOSES)):
        for i, line in enumerate(lines):
            file = folder / f"{command}-{i:02}.json"
            if file.exists():
                continue
            call = [sys.executable, "-m", "vitspec.cli", command, *line.split(), "--json"]
            done = subprocess.run(
                [*call, file.with_suffix(".part").name],
                cwd=folder, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"},
            )  # fmt: skip
            print(f"{command} {line}: exit code {done.returncode}", flush=True)
            if file.with_suffix(".part").exists():
                text = json.loads(file.with_suffix(".part").read_text())
                file.write_text(json.dumps({"line": line, "code": done.returncode, "said": text}))
            else:
                said = {"error": done.stderr.strip()}
                file.write_text(json.dumps({"line": line, "code": done.returncode, "said": said}))


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two pieces of JSON differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            if key not in LEFT_OUT:
                missing = "<missing>"
                yield from differences(a.get(key, missing), b.get(key, missing), f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}[{i}]")
    elif a != b:
        yield f"{path}: {str(a)[:120]} | {str(b)[:120]}"


def compare(before: Path, after: Path) -> int:
    """Print what differs, and how many results and figures do not."""
    files = sorted(one.name for one in before.glob("*.json"))
    found, results, figures = 0, 0, 0
    for name in files:
        a, b = (json.loads((folder / name).read_text()) for folder in (before, after))
        there = list(differences(a, b))
        found += len(there)
        print(f"{a['line']}: {len(there)} differences")
        for one in there[:8]:
            print(f"    {one}")
        for report in a["said"].get("implementations", []):
            results += len(report["results"])
            figures += sum(5 * len(result["grades"]) for result in report["results"])
    print(f"{len(files)} runs, {results} results, {figures} figures: {found} differences")
    return 1 if found else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"] and len(sys.argv) == 3:
        write(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["compare"] and len(sys.argv) == 4:
        raise SystemExit(compare(Path(sys.argv[2]), Path(sys.argv[3])))
    else:
        raise SystemExit(__doc__)
