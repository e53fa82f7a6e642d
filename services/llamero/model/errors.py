"""The errors that models, templates and adapters are refused with; each message is a sentence that says what to do."""


class ModelError(Exception):
    """A base model, tokenizer or adapter that can't be used: final, since trying again won't mend it."""


class TemplateError(ModelError):
    """A chat template that can't be trained with, or a conversation that a template can't render."""


class SelfTestError(ModelError):
    """Packed and single logits differ: documents would leak into each other, so training is refused."""


class Unreachable(ModelError):
    """A hub or store that does not answer, or not now: trying again later may mend it."""
