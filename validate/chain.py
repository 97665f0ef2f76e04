"""The stages of an energy-flow bundle wired together, against torch wired the same way.

Three chains run on the same texts, embeddings and surfaces: torch in float64, torch in simulated fp16, and the packages. What
leaves the encoder, the lattice, the mappers and the decoder is judged by the gates of a single package, with the second
chain's error as the budget. The decoder is fed with the reference's own tokens, so that one flip does not hide the rest.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array, Arrays
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.wiring import Carried, Predict, Wiring
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import Model
from coreflow.validate.gates.decisions import agreeing, margin_noise, nearness
from coreflow.validate.gates.metrics import as_float64, rms
from coreflow.validate.gates.output import Comparison, judge
from coreflow.validate.gates.tolerance import DECISION_FACTOR, SEEDS, Tolerance
from coreflow.validate.package import too_ambiguous, verdict_text
from coreflow.validate.references.torch_module import TorchReference
from coreflow.validate.report.model import (
    AmbiguousSample,
    CascadeReport,
    Cause,
    ChainRow,
    OutputReport,
    Report,
    Samples,
    TokenAgreement,
    worst,
)

# What leaves the chain where, and the stages that had a part in it since the place before.
CHECKPOINTS = {
    "encoder.surface": ("encoder",),
    "mapper_in.surface": ("mapper_in",),
    "lattice.surface": ("lattice_step",),
    "mapper_out.embedding": ("mapper_out",),
    "decoder.logits": ("decoder_memory", "decoder_step"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Sentence:
    """A text as the encoder reads it: (1, L) ids and mask."""

    text: str
    ids: Array
    mask: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class _Path:
    """One sample on its way: what was seen at the checkpoints, and how the lattice carried it."""

    seen: Arrays
    carried: Carried


class _Chain:
    """The wiring over one way to execute the stages; floats travel as ``dtype``."""

    def __init__(self, config: EnergyConfig, predict: Predict, dtype: type) -> None:
        self.wiring = Wiring(config, predict)
        self.config = config
        self._dtype = dtype

    def text(self, sentence: Sentence, tokens: Sequence[int] | None, cells: Array | None = None) -> tuple[_Path, list[int]]:
        """A sentence to logits (T, V) along ``tokens``, or along the chain's own likeliest ones; and these tokens, the end included.

        Flows start from ``cells``, those of the reference, or from the chain's own.
        """
        entering = self.wiring.encode(sentence.ids, sentence.mask.astype(self._dtype))
        carried = self.wiring.carry(entering, cells)
        logits, chosen = self.decode(carried.surface, tokens)
        return _Path(
            seen={"encoder.surface": entering, "lattice.surface": carried.surface, "decoder.logits": logits}, carried=carried
        ), chosen

    def decode(self, surface: Array, tokens: Sequence[int] | None) -> tuple[Array, list[int]]:
        """Logits (T, V) and the likeliest token of each row, up to the end token or the end of ``tokens``."""
        step, state = self.wiring.decoder(surface)
        token, rows, chosen = self.config.decoder.pad_id, [], []
        for position in range(self.config.decode_length if tokens is None else len(tokens)):
            logits, state = step(token, position, dict(state))
            rows.append(logits)
            chosen.append(int(np.argmax(logits)))
            token = chosen[-1] if tokens is None else tokens[position]
            if tokens is None and token == self.config.decoder.eos_id:
                break
        return np.stack(rows), chosen

    def embedding(self, embedding: Array, cells: Array | None = None) -> _Path:
        """An embedding through both mappers and the lattice."""
        entering = self.wiring.embedding_to_surface(embedding.astype(self._dtype))
        carried = self.wiring.carry(entering, cells)
        leaving = self.wiring.surface_to_embedding(carried.surface)
        seen = {"mapper_in.surface": entering, "lattice.surface": carried.surface, "mapper_out.embedding": leaving}
        return _Path(seen=seen, carried=carried)

    def surface(self, surface: Array, cells: Array | None = None) -> _Path:
        """A surface through the lattice."""
        carried = self.wiring.carry(surface.astype(self._dtype), cells)
        return _Path(seen={"lattice.surface": carried.surface}, carried=carried)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """One sample through all three chains."""

    label: str
    exact: _Path
    simulated: _Path
    actual: _Path
    tokens: tuple[int, ...] = ()  # of the reference, the end included
    decoded: tuple[int, ...] = ()  # of the packages, on their own


def judge_cascade(
    config: EnergyConfig,
    recipes: Mapping[str, Recipe],
    references: Mapping[str, TorchReference],
    models: Mapping[str, Model],
    sentences: Sequence[Sentence],
    stages: Mapping[str, Report],
    tolerance: Tolerance,
) -> CascadeReport:
    """The verdict on the chain of ``models``; ``stages`` are the reports on each of them alone."""
    started = time.monotonic()
    runs = _run_all(config, recipes, references, models, sentences)
    near = _nearness(runs, references["lattice_step"])
    clear = np.array(near) >= 1
    kept = [bool(each) for each in clear | _agreeing(runs, clear)]
    comparisons = _compare(runs, kept)
    outputs = {each.name: judge(each, tolerance, {}) for each in comparisons}
    tokens = _token_agreement(sentences, runs, kept)
    seeds = tuple(range(SEEDS))
    samples = Samples(
        seeds=seeds,
        drawn=len(runs) - len(sentences),
        given=len(sentences),
        ambiguous=tuple(
            AmbiguousSample(label=run.label, left_out=not kept[place], nearness=near[place], differing=_differing(run, outputs))
            for place, run in enumerate(runs)
            if near[place] < 1
        ),
    )
    verdict = worst(each.outcome for each in outputs.values())
    unclear = too_ambiguous(sum(kept), len(kept))
    problems = (unclear,) if unclear else ()
    text = ""
    if tokens.unexplained:
        verdict, text = "fail", f"other tokens than torch, which is sure of its own: {tokens.unexplained[0]}"
    elif unclear and verdict != "fail":
        verdict = "incomplete"
    cause: Cause | None = None
    if verdict == "fail":
        finite = any(gate.name == "finite" and gate.outcome == "fail" for each in outputs.values() for gate in each.gates)
        cause = "non-finite" if finite else "fp16" if next(iter(models.values())).backend == "lifted" else "device"
    # The cause says which arithmetic; which stage it was, the rows show.
    text = text or verdict_text(verdict, None, outputs, tolerance, unclear)
    rows = tuple(
        ChainRow(
            stage=stage,
            output=name,
            alone=stages[stage].verdict,
            outcome=outputs[name].outcome,
            cascaded=outputs[name].rho_rms,
            teacher_forced=max((each.rho_rms for each in stages[stage].outputs.values()), default=float("nan")),
        )
        for name, names in CHECKPOINTS.items()
        for stage in names
    )
    return CascadeReport(
        verdict=verdict,
        cause=cause,
        text=text,
        outputs=outputs,
        rows=rows,
        tokens=tokens,
        samples=samples,
        seconds=time.monotonic() - started,
        problems=problems,
    )


def _run_all(
    config: EnergyConfig,
    recipes: Mapping[str, Recipe],
    references: Mapping[str, TorchReference],
    models: Mapping[str, Model],
    sentences: Sequence[Sentence],
) -> list[_Run]:
    def torch_predict(execute: Callable[[TorchReference, Arrays], tuple[Array, ...]]) -> Predict:
        def predict(name: str, inputs: Arrays) -> Arrays:
            results = execute(references[name], {each: inputs[each] for each in recipes[name].inputs})
            return dict(zip(recipes[name].outputs, results, strict=True))

        return predict

    exact = _Chain(config, torch_predict(TorchReference.outputs), np.float64)
    simulated = _Chain(config, torch_predict(TorchReference.simulated_outputs), np.float32)
    actual = _Chain(config, lambda name, inputs: models[name].predict(inputs), np.float32)
    runs = []
    for number, sentence in enumerate(sentences):
        path, tokens = exact.text(sentence, None)
        simulated_path, _ = simulated.text(sentence, tokens, path.carried.cells)
        actual_path, decoded = actual.text(sentence, tokens, path.carried.cells)
        if decoded != tokens:  # on its own from the first other token on
            decoded = actual.decode(actual_path.carried.surface, None)[1]
        label = f"sentence {number}"
        runs.append(
            _Run(label=label, exact=path, simulated=simulated_path, actual=actual_path, tokens=tuple(tokens), decoded=tuple(decoded))
        )
    for seed in range(SEEDS):
        embedding = recipes["mapper_in"].inputs_for(seed)["embedding"]
        surface = recipes["mapper_out"].inputs_for(seed)["surface"]
        path = exact.embedding(embedding)
        others = [chain.embedding(embedding, path.carried.cells) for chain in (simulated, actual)]
        runs.append(_Run(label=f"embedding {seed}", exact=path, simulated=others[0], actual=others[1]))
        path = exact.surface(surface)
        others = [chain.surface(surface, path.carried.cells) for chain in (simulated, actual)]
        runs.append(_Run(label=f"surface {seed}", exact=path, simulated=others[0], actual=others[1]))
    return runs


def _nearness(runs: Sequence[_Run], lattice: TorchReference) -> list[float]:
    """Of the nearest decision on each sample's way through the lattice; 0 where simulated fp16 itself decided otherwise.

    The noise of a step is that of all samples at this step: it grows on the way.
    """
    margins: list[list[tuple[Array, Array]]] = []
    parted = []
    for run in runs:
        pairs, alike = [], True
        tables = list(zip(run.exact.carried.tables, run.simulated.carried.tables, strict=False))
        for place, (wide_table, narrow_table) in enumerate(tables):
            alike = alike and _same_decisions(wide_table, narrow_table)
            if alike and place < len(tables) - 1:
                exact, simulated = ({"last": np.zeros((1, 1, 1, 1)), **table} for table in (wide_table, narrow_table))
                pairs.append((lattice.margins(exact), lattice.simulated_margins(simulated)))
        margins.append(pairs)
        parted.append(not alike or len(run.exact.carried.tables) != len(run.simulated.carried.tables))
    steps = max(len(pairs) for pairs in margins)
    noise = []
    for step in range(steps):
        there = [pairs[step] for pairs in margins if step < len(pairs)]
        noise.append(margin_noise([wide for wide, _ in there], [narrow for _, narrow in there]))
    return [
        0.0 if apart else min((nearness(wide, noise[step]) for step, (wide, _) in enumerate(pairs)), default=np.inf)
        for pairs, apart in zip(margins, parted, strict=True)
    ]


def _agreeing(runs: Sequence[_Run], clear: Array) -> Array:
    """(runs,): whether no decision fell otherwise, by what left the chain."""
    agree = np.ones(len(runs), bool)
    for name in CHECKPOINTS:
        passing = [place for place, run in enumerate(runs) if name in run.exact.seen]
        exact, simulated, actual = (
            [getattr(runs[place], side).seen[name] for place in passing] for side in ("exact", "simulated", "actual")
        )
        agree[passing] &= agreeing(exact, simulated, actual, clear[passing])
    return agree


def _same_decisions(exact: Arrays, simulated: Arrays) -> bool:
    """Whether the same flows are alive in the same cells: whole numbers in either arithmetic."""
    return all(np.array_equal(np.rint(exact[field]), np.rint(simulated[field])) for field in ("alive", "position"))


def _compare(runs: Sequence[_Run], kept: Sequence[bool]) -> list[Comparison]:
    """A ``Comparison`` per checkpoint; every row of logits counts as a sample."""
    found = []
    for name in CHECKPOINTS:
        sides: dict[str, list[Array]] = {"exact": [], "simulated": [], "actual": []}
        labels, clear = [], []
        for run, is_kept in zip(runs, kept, strict=True):
            if name not in run.exact.seen:
                continue
            for side, parts in sides.items():
                parts.append(getattr(run, side).seen[name])
            rows = len(run.exact.seen[name])
            labels += [run.label] if rows == 1 else [f"{run.label}, token {row}" for row in range(rows)]
            # Nothing has been decided before the lattice.
            clear += [is_kept or name in ("encoder.surface", "mapper_in.surface")] * rows
        stacked = {side: np.concatenate(parts)[:, None] for side, parts in sides.items()}
        found.append(
            Comparison(
                name=name,
                spec=TensorSpec(stacked["exact"].shape[1:]),
                reference=stacked["exact"],
                simulated=stacked["simulated"],
                actual=stacked["actual"],
                labels=tuple(labels),
                kept=np.array(clear),
            )
        )
    return found


def _token_agreement(sentences: Sequence[Sentence], runs: Sequence[_Run], kept: Sequence[bool]) -> TokenAgreement:
    total = equal = 0
    explained: list[str] = []
    unexplained: list[str] = []
    for sentence, run, is_kept in zip(sentences, runs, kept, strict=False):
        total += max(len(run.tokens), len(run.decoded))
        same = [want == got for want, got in zip(run.tokens, run.decoded, strict=False)]
        equal += sum(same)
        if run.tokens == run.decoded:
            continue
        first = same.index(False)
        exact, simulated = (as_float64(path.seen["decoder.logits"][first]) for path in (run.exact, run.simulated))
        second, top = np.sort(exact)[-2:]
        noise = DECISION_FACTOR * rms(simulated - exact)
        ahead = f"which is ahead by {top - second:.2g}; noise {noise:.2g}"
        said = f"{sentence.text!r}, token {first}: {run.decoded[first]} for {run.tokens[first]}, {ahead}"
        (explained if not is_kept or top - second <= noise else unexplained).append(said)
    return TokenAgreement(sentences=len(sentences), tokens=total, equal=equal, explained=tuple(explained), unexplained=tuple(unexplained))


def _differing(run: _Run, outputs: Mapping[str, OutputReport]) -> int:
    """Elements of an ambiguous sample that differ by more than fp16 noise, at all its checkpoints."""
    errors = {name: np.abs(as_float64(run.actual.seen[name]) - as_float64(reference)) for name, reference in run.exact.seen.items()}
    return sum(int(np.count_nonzero(~(error <= DECISION_FACTOR * outputs[name].budget))) for name, error in errors.items())
