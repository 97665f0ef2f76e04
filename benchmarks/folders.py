"""Models of their usual size, from a folder of transformers to a verdict by two commands: CPU time, peak memory, size.

``python -m benchmarks.folders [NAME ...]`` writes the table to benchmarks/results/folders.json. Weights are random and seeded; of the sizes
nothing is made smaller. Every command runs in a process of its own, whose time and memory hold those of its children.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import RESULTS, record

LLAMA_1B: dict[str, Any] = {  # the sizes of the smallest Llama 3.2
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
WHISPER_TINY: dict[str, Any] = {
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
}
MODELS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {  # class, configuration, sizes, options of export
    "ViT-B/16": ("ViTForImageClassification", "ViTConfig", {"num_labels": 1000}, ()),
    "ResNet-50": ("ResNetForImageClassification", "ResNetConfig", {"num_labels": 1000}, ("--image-size", "224")),
    "Whisper-tiny": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER_TINY, ()),
    "DistilBERT": ("DistilBertModel", "DistilBertConfig", {}, ("--length", "128")),
    "GPT-2 small": ("GPT2LMHeadModel", "GPT2Config", {}, ("--length", "256")),
    "Llama 1B": ("LlamaForCausalLM", "LlamaConfig", LLAMA_1B, ("--length", "256")),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model: what both commands took, and what they said.

    >>> Row(model="ViT-B/16", parameters=86_567_656, export_cpu_s=70.0, export_gb=2.1, verdict="pass")
    """

    model: str
    parameters: int
    package_mb: float = 0.0
    export_cpu_s: float = 0.0
    export_gb: float = 0.0
    validate_cpu_s: float = 0.0
    validate_gb: float = 0.0
    verdict: str = ""
    text: str = ""


def main() -> int:
    """Run those named, or all, and keep the rows of the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)} [default: all]")
    names = parser.parse_args().names or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(MODELS)}")
    rows = {row["model"]: row for row in _recorded()}
    table = Table("model", "M weights", "MB", "export CPU s", "GB", "validate CPU s", "GB", "verdict", box=None, pad_edge=False)
    for name in names:
        row = _run(name)
        rows[name] = asdict(row)
        figures = (row.parameters / 1e6, row.package_mb, row.export_cpu_s, row.export_gb, row.validate_cpu_s, row.validate_gb)
        table.add_row(name, *(f"{figure:.1f}" for figure in figures), row.verdict or row.text[:120])
        record("folders", ("torch", "coremltools", "transformers"), rows=[rows[model] for model in MODELS if model in rows])
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def _recorded() -> list[dict[str, Any]]:
    path = RESULTS / "folders.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def _run(name: str) -> Row:
    with tempfile.TemporaryDirectory() as temporary:
        folder, bundle = Path(temporary) / "model", Path(temporary) / "bundle"
        saved = _command([sys.executable, "-c", f"from benchmarks.folders import save; print(save({name!r}, {str(folder)!r}))"])
        parameters = int(saved[1])
        coreflow = [sys.executable, "-m", "coreflow.cli.main"]
        code, _, problem, export_s, export_gb = _command([*coreflow, "export", str(folder), "--out", str(bundle), *MODELS[name][3]])
        if code:
            return Row(model=name, parameters=parameters, export_cpu_s=export_s, export_gb=export_gb, text=problem.strip())
        size = sum(file.stat().st_size for file in (bundle / "packages").rglob("*") if file.is_file()) / 1e6
        report = Path(temporary) / "report.json"
        _, _, problem, check_s, check_gb = _command([*coreflow, "validate", str(bundle), "--quick", "--report", str(report)])
        verdict = json.loads(report.read_text())["verdict"] if report.exists() else ""
        return Row(
            model=name,
            parameters=parameters,
            package_mb=size,
            export_cpu_s=export_s,
            export_gb=export_gb,
            validate_cpu_s=check_s,
            validate_gb=check_gb,
            verdict=verdict,
            text="" if verdict else problem.strip(),
        )


def save(name: str, folder: str) -> int:
    """Write a model with random weights as transformers does; returns the number of its weights."""
    import transformers as hf

    class_name, config_name, sizes, _ = MODELS[name]
    torch.manual_seed(0)
    model = getattr(hf, class_name)(getattr(hf, config_name)(**sizes)).eval()
    if name == "ResNet-50":  # statistics of a few batches, as if trained: those of the start make all results alike
        with torch.no_grad():
            model.train()
            for _ in range(3):
                model(torch.randn(4, 3, 224, 224))
            model.eval()
    model.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def _command(command: Sequence[str]) -> tuple[int, str, str, float, float]:
    """Exit code, both outputs, CPU seconds and peak memory in GB of a command and what it starts."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"})
        started = time.perf_counter()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        print(f"{' '.join(command[2:5])}: {process.returncode} after {time.perf_counter() - started:.0f} s", file=sys.stderr)
        out.seek(0)
        err.seek(0)
        return process.returncode, out.read(), err.read(), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


if __name__ == "__main__":
    sys.exit(main())
