"""The steps that a manifest can put its data through: each a model with its thresholds as defaults, documented beside themselves.

A step is an object with exactly one kind (`{quality: {...}}`), and optionally the sources that it is for. What the kinds do stands in
`llamero.data.steps`; named lists of them in `profiles.py`. "Paper" and "code" in a description say where a threshold comes from.
"""

from typing import Annotated, Any, Final

from pydantic import Field

from llamero.spec.base import SpecModel
from llamero.spec.steps.across import DecontaminateStep as DecontaminateStep
from llamero.spec.steps.across import DuplicatesStep as DuplicatesStep
from llamero.spec.steps.across import EvaluationSet as EvaluationSet
from llamero.spec.steps.across import NearDuplicatesStep as NearDuplicatesStep
from llamero.spec.steps.asking import BackTranslateStep as BackTranslateStep
from llamero.spec.steps.asking import Embedding as Embedding
from llamero.spec.steps.asking import EvolveStep as EvolveStep
from llamero.spec.steps.asking import GenerateSpec as GenerateSpec
from llamero.spec.steps.asking import JudgeStep as JudgeStep
from llamero.spec.steps.asking import Kept as Kept
from llamero.spec.steps.asking import LanguageModel as LanguageModel
from llamero.spec.steps.asking import Operation as Operation
from llamero.spec.steps.asking import PrinciplesStep as PrinciplesStep
from llamero.spec.steps.asking import RewriteStep as RewriteStep
from llamero.spec.steps.choosing import SCORES as SCORES
from llamero.spec.steps.choosing import ControlsSpec as ControlsSpec
from llamero.spec.steps.choosing import DiversityStep as DiversityStep
from llamero.spec.steps.choosing import KCenterStep as KCenterStep
from llamero.spec.steps.choosing import MiningStep as MiningStep
from llamero.spec.steps.choosing import RandomStep as RandomStep
from llamero.spec.steps.choosing import RankStep as RankStep
from llamero.spec.steps.choosing import SampleStep as SampleStep
from llamero.spec.steps.choosing import ScoreStep as ScoreStep
from llamero.spec.steps.choosing import ThresholdStep as ThresholdStep
from llamero.spec.steps.fields import Text
from llamero.spec.steps.text import ALPACA_BLOCKED_WORDS as ALPACA_BLOCKED_WORDS
from llamero.spec.steps.text import SELF_INSTRUCT_BLOCKED_WORDS as SELF_INSTRUCT_BLOCKED_WORDS
from llamero.spec.steps.text import AnswerStyleStep as AnswerStyleStep
from llamero.spec.steps.text import ContentStep as ContentStep
from llamero.spec.steps.text import ConversationsStep as ConversationsStep
from llamero.spec.steps.text import ExtractStep as ExtractStep
from llamero.spec.steps.text import InstructionsStep as InstructionsStep
from llamero.spec.steps.text import LanguageStep as LanguageStep
from llamero.spec.steps.text import LengthStep as LengthStep
from llamero.spec.steps.text import PersonalDataStep as PersonalDataStep
from llamero.spec.steps.text import QualityStep as QualityStep
from llamero.spec.steps.text import RepetitionStep as RepetitionStep

DEFAULT_PROFILE: Final = "instruction"
"""The profile (`profiles.PROFILES`) of a manifest that names no steps."""


NO_KINDS: Final = ("sources", "models")
"""Fields of a step that are not a kind."""


class DataStep(SpecModel):
    """One step: exactly one kind."""

    sources: Annotated[list[Text], Field(max_length=64)] = Field(
        default_factory=list, description="Names of the sources whose records it is for; by default all."
    )
    use: Text | None = Field(None, description="A named list of steps, in its place: see the profiles.")
    models: Annotated[list[LanguageModel], Field(max_length=8)] = Field(
        default_factory=list, description="For `use`: who is asked by the profile's steps that ask."
    )
    extract: ExtractStep | None = Field(None, description="Main content of whole pages.")
    content: ContentStep | None = Field(None, description="Listed words, boilerplate, richness, readability, spelling.")
    personal_data: PersonalDataStep | None = Field(None, description="Masks or drops personal data.")
    language: LanguageStep | None = Field(None, description="Keeps listed languages.")
    conversations: ConversationsStep | None = Field(None, description="Vicuna's rules.")
    length: LengthStep | None = Field(None, description="Lengths within bounds.")
    answer_style: AnswerStyleStep | None = Field(None, description="LIMA's rules for answers.")
    instructions: InstructionsStep | None = Field(None, description="Self-Instruct's rules.")
    quality: QualityStep | None = Field(None, description="Gopher's quality rules.")
    repetition: RepetitionStep | None = Field(None, description="Gopher's repetition rules.")
    duplicates: DuplicatesStep | None = Field(None, description="One record a key.")
    near_duplicates: NearDuplicatesStep | None = Field(None, description="MinHash, verified.")
    decontaminate: DecontaminateStep | None = Field(None, description="No overlap with evaluation sets.")
    judge: JudgeStep | None = Field(None, description="Models score records.")
    rewrite: RewriteStep | None = Field(None, description="A model rewrites answers.")
    evolve: EvolveStep | None = Field(None, description="A model evolves instructions.")
    back_translate: BackTranslateStep | None = Field(None, description="A model writes instructions for texts.")
    principles: PrinciplesStep | None = Field(None, description="A model answers anew by principles.")
    score: ScoreStep | None = Field(None, description="Measures under the base model.")
    threshold: ThresholdStep | None = Field(None, description="Scores within bounds.")
    k_center: KCenterStep | None = Field(None, description="LTD's choice.")
    diversity: DiversityStep | None = Field(None, description="DEITA's choice.")
    rank: RankStep | None = Field(None, description="InstructionGPT-4's choice.")
    mining: MiningStep | None = Field(None, description="Instruction Mining's choice.")
    sample: SampleStep | None = Field(None, description="LIMA's sampling.")
    random: RandomStep | None = Field(None, description="A random part.")

    @property
    def kinds(self) -> list[str]:
        """The kinds that are set, in camelCase; a valid step has one."""
        return [
            info.alias or name
            for name, info in type(self).model_fields.items()
            if name not in NO_KINDS and getattr(self, name) is not None
        ]

    @property
    def kind(self) -> str:
        """The step's kind in camelCase (`use` for a profile)."""
        return self.kinds[0]

    @property
    def options(self) -> Any:
        """The kind's own model; the profile's name for `use`."""
        name = next(n for n, i in type(self).model_fields.items() if (i.alias or n) == self.kind)
        return getattr(self, name)
