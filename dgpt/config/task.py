"""What a fine-tuning learns and from which examples: every setting with its unit, default and rule."""

from typing import Literal, Self

from pydantic import model_validator

from dgpt.config.section import Fraction, NotNegative, Positive, Section

METRICS = {
    "generation": ("loss", "perplexity", "rouge_l", "exact_match"),
    "classification": ("loss", "accuracy", "macro_f1"),
    "extractive_qa": ("loss", "exact_match", "f1"),
    "generative_qa": ("loss", "perplexity", "exact_match", "f1"),
}


class TaskConfig(Section):
    kind: Literal["generation", "classification", "extractive_qa", "generative_qa"] = "generation"
    """What is learnt: a text after a prompt or in a conversation, a class of a text, an answer as a span or written."""
    labels: tuple[str, ...] = ()
    """classification: the classes by name, in the order of the outputs; empty takes them from the training examples."""
    multi_label: bool = False
    """classification: an example has any number of classes, in the field `labels`."""
    class_weights: Literal["none", "balanced"] = "none"
    """classification: in training 'balanced' weighs an example by 1 / (share of its class * number of classes)."""
    label_threshold: Fraction = 0.5
    """classification with multi_label: a class is predicted from this probability on."""
    stride_tokens: Positive = 128
    """extractive_qa: a long context is read in windows; each shares this many tokens with the one before."""
    max_answer_tokens: Positive = 30
    """extractive_qa: longest span that is predicted."""
    no_answer_threshold: float = 0.0
    """extractive_qa: 'no answer' is predicted if its score exceeds that of the best span by more than this."""
    no_answer_text: str = "no answer"
    """generative_qa: what is written where the context holds no answer."""
    chat: bool = False
    """generation: the model is asked in the chat template; filled in where training examples have `messages`."""
    max_new_tokens: Positive = 128
    """generation, generative_qa: longest answer that is written in an evaluation."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the results on held-out examples."""
        return METRICS[self.kind]

    @property
    def is_language_model(self) -> bool:
        """Whether the model writes text; else it has a head for the task."""
        return self.kind in ("generation", "generative_qa")

    @model_validator(mode="after")
    def check_labels(self) -> Self:
        if len(set(self.labels)) < len(self.labels) or not all(self.labels):
            raise ValueError(f"labels = {list(self.labels)} must differ and not be empty; rename one")
        if self.multi_label and self.class_weights != "none":
            raise ValueError("class_weights = 'balanced' is for one class an example; set multi_label = false")
        return self


class FieldNames(Section):
    prompt: str = "prompt"
    """generation: what the answer follows."""
    completion: str = "completion"
    """generation: the answer."""
    messages: str = "messages"
    """generation: a conversation, as a list of {role, content}, in place of prompt and completion."""
    text: str = "text"
    """classification: the text."""
    text_pair: str = "text_pair"
    """classification: a second text, where a row has it."""
    label: str = "label"
    """classification: the class."""
    labels: str = "labels"
    """classification with multi_label: a list of classes."""
    id: str = "id"
    """Question answering: names the question in predictions, where a row has it."""
    context: str = "context"
    """Question answering: the text that holds the answer."""
    question: str = "question"
    """Question answering: the question."""
    answers: str = "answers"
    """Question answering: {text: [...], answer_start: [...]} as in SQuAD; empty lists where there is no answer."""


class TaskDataConfig(Section):
    path: str = "data/task"
    """Folder with train.jsonl and validation.jsonl, used where `train` and `validation` name no file."""
    train: str = ""
    """File of training examples: .jsonl, .csv or .parquet, also as .gz or .zst."""
    validation: str = ""
    """File of held-out examples, in the same formats."""
    validation_fraction: Fraction = 0.1
    """Share of the training examples to hold out, where there is no file or split of them."""
    dataset: str = ""
    """Name for `datasets.load_dataset`, instead of files."""
    dataset_config: str = ""
    """Configuration name of the data set."""
    train_split: str = "train"
    """Split of the data set to train on."""
    validation_split: str = "validation"
    """Split of the data set to hold out; empty takes validation_fraction of the training split."""
    demo: Literal["", "generation", "chat", "classification", "extractive_qa"] = ""
    """Make files of this kind in `path` from the Python standard library of this machine, if they are not there."""
    fields: FieldNames = FieldNames()
    max_examples: NotNegative = 0
    """Use only this many examples, drawn by `seed`; 0: all."""
    max_tokens: NotNegative = 0
    """Longest example, in tokens; 0 means the model's seq_len."""
    over_long: Literal["refuse", "skip", "truncate"] = "refuse"
    """An example above max_tokens: an error, left out, or cut (a prompt at its beginning, else at the end)."""
    packing: bool = True
    """generation, generative_qa: several examples in a sequence of max_tokens; no example sees another."""

    @model_validator(mode="after")
    def check_one_origin(self) -> Self:
        if self.dataset and (self.train or self.validation or self.demo):
            raise ValueError(f"dataset = '{self.dataset}' goes without train, validation and demo; give one of them")
        if self.demo and (self.train or self.validation):
            raise ValueError(f"demo = '{self.demo}' writes its files into path; leave train and validation away")
        return self
