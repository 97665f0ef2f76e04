"""Model families: the protocol that commands use, and the registry of families. Loads no torch.

A family is a folder of its own under ``models`` and one line here, the only one outside that folder. Commands, export, runtime and
validation ask the registered families, and none of them knows a stage's name.

    Family      trains, and opens runs and bundles
    Run         a trained model in a folder: stages to convert, and the companions that a bundle keeps beside the packages
    Companions  the files beside a bundle's packages: the reference, golden samples, and the wiring of the stages
    Pipeline    the stages wired for use, over whatever executes them
    Trial       the wired stages as validation runs them: samples, outputs to compare, decisions
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import ConfigError
from coreflow.models.stage import Stage

if TYPE_CHECKING:
    from coreflow.models.data.tokenizers import TextTokenizer

Predict = Callable[[str, Arrays], Arrays]
"""(name of a stage, its inputs) -> its outputs, whatever executes it: torch, Core ML or a lifted program."""

_Options = TypeVar("_Options")


# -- training ----------------------------------------------------------------------------------------------------------------------


class TrainingOptions(Protocol):
    """All that decides the result of a run; a family's own class has more fields, by the names of the options of ``coreflow train``.

    >>> options = family.training_options({"preset": "demo", "steps": 100})
    >>> options.preset
    """

    @property
    def preset(self) -> str:
        """Name of one of the family's presets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of the optimizer; a family's own class adds its losses.

    >>> for event in family.train(options, directory):
    ...     if isinstance(event, Progress):
    ...         print(f"{event.step}/{event.steps}", dict(event.losses))
    """

    step: int
    steps: int
    step_ms: float
    memory_mb: float  # peak on the device; 0 on a CPU

    @property
    def losses(self) -> Mapping[str, float]:
        """Name of each loss, and its value in this step."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The end of a run; a family's own class adds how good the model became.

    >>> *_, trained = family.train(options, directory)
    >>> print(trained.summary())
    """

    directory: Path

    def to_json(self) -> dict[str, Any]:
        """Plain data for programs."""
        return {"directory": str(self.directory)}

    def summary(self) -> str:
        """Lines for people."""
        return f"trained: {self.directory}"


class Run(Protocol):
    """A trained model in a folder.

    >>> run = family_of_run(directory).open_run(directory)
    >>> [stage.name for stage in run.stages()]
    """

    @property
    def held_out(self) -> tuple[str, ...]:
        """Inputs of ``coreflow run`` that were never trained on."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain data for the manifest of a bundle."""

    def stages(self) -> tuple[Stage, ...]:
        """The stages, in the order an input meets them."""

    def write_companions(self, folder: Path) -> None:
        """Fill ``folder`` with all that ``Family.open_companions`` needs."""


# -- running -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Calls of a stage for one input, and their time in all.

    >>> result = chain.run("the old mill")
    >>> {name: time.total_ms / time.calls for name, time in result.times.items()}
    """

    calls: int
    total_ms: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainResult:
    """One input through a chain; a family's own class adds intermediate values.

    >>> result = Chain.load("artifacts/demo").run("the old mill")
    >>> result.text, result.warnings
    """

    text: str  # the answer in one line
    warnings: tuple[str, ...] = ()  # what of the input was not read
    times: Mapping[str, StageTime] = field(default_factory=dict)  # by stage; the chain fills it in

    def to_json(self, backend: str) -> dict[str, Any]:
        """Everything about the input, for programs; ``backend`` is the one that executed the stages."""
        times = {name: {"calls": time.calls, "total_ms": time.total_ms} for name, time in self.times.items()}
        return {"text": self.text, "backend": backend, "times": times}

    def details(self) -> list[str]:
        """Lines for people, beside the text and the times."""
        return []


class Pipeline(Protocol):
    """The stages of a bundle, wired. Everything else that a family offers is an attribute of the chain as well.

    >>> pipeline = companions.pipeline(predict)
    >>> pipeline.run("the old mill", pipeline.options({"beams": 4})).text
    """

    @property
    def config(self) -> Any:
        """Settings of the model."""

    def options(self, flags: Mapping[str, Any]) -> Any:
        """Decoding settings from the flags of ``coreflow run``; ``ConfigError`` for a flag that the family does not have."""

    def run(self, text: str, options: Any = None, *, corrections: int = 0) -> ChainResult:
        """One input through the stages."""

    def plot(self, result: Any, path: Path) -> None:
        """Save a picture of ``result``; ``ConfigError`` where the family has none."""


# -- validation --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ChainOutput:
    """A value at which two chains are compared.

    >>> ChainOutput(name="reader.vector", stages=("reader",), decided=False)
    """

    name: str
    stages: tuple[str, ...]  # that had a part in it since the output before
    decided: bool = True  # whether anything has been decided before it: a decision near its border may fall either way


@dataclass(frozen=True, kw_only=True)
class Decider:
    """A stage that takes hard decisions, step after step; its module has ``decision_margins``.

    >>> Decider(stage="selector", fields=("chosen", "place"))
    """

    stage: str
    fields: tuple[str, ...]  # of its inputs, that hold decisions as whole numbers: equal in two chains that decided alike


@dataclass(frozen=True, kw_only=True, eq=False)
class Passage:
    """One sample on its way through a chain, in one arithmetic; a family's own class adds what the other chains have to follow.

    >>> reference = sample.run(predict_fp64, np.float64)
    >>> actual = sample.run(predict_package, np.float32, reference)  # the same decisions and tokens
    >>> actual.outputs["encoder.surface"] - reference.outputs["encoder.surface"]
    """

    outputs: Mapping[str, Array]  # by ``ChainOutput.name``; a row each
    steps: tuple[Arrays, ...] = ()  # inputs of the decider at every step, and what it would have been given after the last
    tokens: tuple[int, ...] = ()  # the likeliest of every row of logits, the end included


class TrialSample(Protocol):
    """One input for a wired chain.

    >>> sample = companions.trial(stages, range(8), texts).samples[0]
    >>> sample.run(predict, np.float32).outputs
    """

    @property
    def label(self) -> str:
        """Name in a report."""

    @property
    def seed(self) -> int | None:
        """Seed that it was drawn from; None for a text."""

    @property
    def text(self) -> str:
        """The text as a report shows it; empty where the sample is none."""

    def run(self, predict: Predict, dtype: type, reference: Any = None) -> Any:
        """The ``Passage`` through the stages that ``predict`` executes, floats as ``dtype``; decisions and tokens are ``reference``'s."""

    def tokens(self, predict: Predict, passage: Any) -> tuple[int, ...]:
        """The tokens that follow from ``passage`` when the chain reads its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """All that validation needs to compare two wired chains.

    >>> trial = companions.trial(stages, seeds=range(8), texts=[])
    >>> [(output.name, output.stages) for output in trial.outputs]
    """

    outputs: tuple[ChainOutput, ...]
    samples: Sequence[TrialSample]  # texts first
    decider: Decider | None = None
    logits: str = ""  # the output whose rows choose tokens; empty where none does


@dataclass(frozen=True, kw_only=True, eq=False)
class TextEntry:
    """The stage at which texts enter a chain, and the tokenizer that makes its inputs.

    >>> entry = companions.text_entry()
    >>> entry.stage, entry.tokenizer.encode("the old mill", length=32).ids
    """

    stage: str
    tokenizer: "TextTokenizer"


class Companions(Protocol):
    """The files that a bundle brings beside its packages.

    >>> companions = find_family(manifest.kind).open_companions(bundle / "companions")
    >>> companions.pipeline(predict).run("the old mill").text
    """

    def stages(self) -> tuple[Stage, ...]:
        """The reference: the stages that the packages were made from."""

    def golden(self, stage: str) -> list[tuple[Arrays, Arrays]]:
        """Recorded inputs of a stage and the outputs that torch gave for them; ``BundleError`` when they cannot be read."""

    def text_entry(self) -> TextEntry | None:
        """The stage at which texts enter; None where the family takes none."""

    def pipeline(self, predict: Predict) -> Pipeline:
        """The stages wired for use."""

    def trial(self, stages: Mapping[str, Stage], seeds: range, texts: Sequence[tuple[str, Arrays]]) -> Trial:
        """The stages wired for validation: recorded samples, ``texts`` as (label, inputs of the text stage), and one of a kind per seed."""


# -- the registry ------------------------------------------------------------------------------------------------------------------


class Family(Protocol):
    """A kind of model: how it is trained, and how its runs and bundles are opened.

    >>> family = find_family(manifest.kind)
    >>> for event in family.train(family.training_options({"preset": "demo"}), directory): ...
    >>> family.open_run(directory).stages()
    """

    @property
    def kind(self) -> str:
        """Its name, as a manifest records it."""

    @property
    def presets(self) -> Mapping[str, str]:
        """Name and summary of every size; the first is the default."""

    def training_options(self, flags: Mapping[str, Any]) -> TrainingOptions:
        """The options of a training run from the flags of ``coreflow train``; see ``options_from``."""

    def train(self, options: Any, directory: Path, resume: bool = False) -> Iterator[Progress | Trained]:
        """Train and save to ``directory``: a ``Progress`` per step, then a ``Trained``; ``resume`` goes on where a run was stopped."""

    def has_run(self, directory: Path) -> bool:
        """Whether ``directory`` looks like a run of this family, finished or not."""

    def is_finished(self, directory: Path) -> bool:
        """Whether the run in ``directory`` came to its end."""

    def open_run(self, directory: Path) -> Run:
        """The run in ``directory``; ``BundleError`` when there is none, or it is damaged."""

    def open_companions(self, folder: Path) -> Companions:
        """The companions of a bundle; their files are read on first use."""


# MODULE:NAME of every family; the first is the default.
FAMILIES: list[str] = [
    "coreflow.models.energy.family:ENERGY",
]


def register(place: str) -> None:
    """Make the family at ``place``, as in ``my_package.family:MINE``, known to the commands; once is enough."""
    if place not in FAMILIES:
        FAMILIES.append(place)


def families() -> list[Family]:
    """The registered families."""
    known: list[Family] = []
    for place in FAMILIES:
        module, _, name = place.partition(":")
        try:
            known.append(getattr(import_module(module), name))
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"the model family {place} cannot be loaded: {error}") from error
    return known


def find_family(kind: str) -> Family | None:
    """The family of that kind; None where no family is: a bundle of a user's own recipes."""
    return next((family for family in families() if family.kind == kind), None)


def family_of_preset(kind: str | None = None, preset: str | None = None) -> Family:
    """The family of that kind; without a kind the first that has the preset, or else the first. ``ConfigError`` lists the kinds."""
    known = families()
    if kind is None:
        return next((family for family in known if preset in family.presets), known[0])
    if (family := find_family(kind)) is None:
        raise ConfigError(f"family {kind!r} does not exist; choose one of {', '.join(family.kind for family in known)}")
    return family


def is_run(directory: Path) -> bool:
    """Whether a family knows a run of its own in ``directory``."""
    return any(family.has_run(directory) for family in families())


def family_of_run(directory: Path) -> Family:
    """The family whose run is in ``directory``; the first where none knows it, to say what is missing."""
    known = families()
    return next((family for family in known if family.has_run(directory)), known[0])


def options_from(options: type[_Options], flags: Mapping[str, Any], kind: str) -> _Options:
    """An instance of a dataclass of ``options``; a ``ConfigError`` names the ``flags`` that are none of its fields."""
    known = [option.name for option in fields(options)]  # type: ignore[arg-type]
    if foreign := [name for name in flags if name not in known]:
        asked = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise ConfigError(f"{asked}: means nothing to the family {kind}, which has {', '.join(known)}")
    return options(**flags)
