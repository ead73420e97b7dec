"""The sections on data and tokenizer: every setting with its unit, default and rule."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dgpt.config.section import FolderName, Fraction, NotNegative, Positive, Section

SMALLEST_VOCAB = 300  # 256 bytes, and some room


class SourceConfig(Section):
    name: str = ""
    """Name of the source in logs and folders; empty takes it from the path."""
    path: str = ""
    """File, folder or glob of text (.txt .md .rst .py ...), .jsonl or .parquet, each also as .gz or .zst."""
    dataset: str = ""
    """Name for `datasets.load_dataset`, instead of a path."""
    dataset_config: str = ""
    """Configuration name of the data set."""
    split: str = "train"
    """Split of the data set."""
    streaming: bool = True
    """Stream the data set instead of downloading it whole."""
    builtin: Literal["", "stdlib"] = ""
    """'stdlib': source and documentation of the Python standard library on this machine, instead of a path."""
    field: str = "text"
    """Field that holds the text, in JSONL, Parquet and data sets."""
    document_bytes: NotNegative = 0
    """Cut text files at a line end into documents of this many bytes; 0: a file is one, cut above 4 MiB."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """Text that is not valid Unicode: stop and name the place, or put U+FFFD there."""
    weight: Annotated[float, Field(ge=0)] = 0.0
    """Share of samples drawn from this source, relative to the others; 0 in all sources means by token count."""

    @model_validator(mode="after")
    def check_one_origin(self) -> Self:
        if sum(map(bool, (self.path, self.dataset, self.builtin))) != 1:
            raise ValueError("a source needs exactly one of path, dataset, builtin; give one of them")
        return self


class DataConfig(Section):
    path: FolderName = "data/stdlib"
    """Folder of the prepared token shards; `dgpt prepare` writes it."""
    sources: tuple[SourceConfig, ...] = (SourceConfig(builtin="stdlib"),)
    """Where the text comes from: one [[data.sources]] table each."""
    val_fraction: Fraction = 0.01
    """Share of documents held out for validation, chosen by a hash of the document."""
    shard_tokens: Positive = 100_000_000
    """Tokens per shard file."""
    num_workers: NotNegative = 0
    """Processes that tokenise; 0 means one per core."""
    reset_at_document: bool = False
    """Attention and positions start anew at each document."""

    @model_validator(mode="after")
    def check_sources(self) -> Self:
        weights = [source.weight for source in self.sources]
        if not weights:
            raise ValueError("sources = []: at least one source is needed; give a [[data.sources]] table")
        if any(weights) and not all(weights):
            raise ValueError(f"sources have weights {weights}; give every source a weight above 0, or none of them")
        return self


class TokenizerConfig(Section):
    kind: Literal["train", "sentencepiece", "huggingface"] = "train"
    """Train a SentencePiece model on the data, or take an existing .model or tokenizer.json."""
    path: str = ""
    """The existing tokenizer file, for kind = 'sentencepiece' or 'huggingface'."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Algorithm, when training."""
    vocab_size: Annotated[int, Field(ge=SMALLEST_VOCAB, lt=2**31)] = 32000
    """Number of pieces, when training; byte fallback takes 256 of them."""
    special_tokens: tuple[str, ...] = ()
    """Own special tokens; text never encodes to them."""
    end_of_document: str = "<|endoftext|>"
    """Token after each document."""
    train_bytes: Positive = 100_000_000
    """Text that the training sees at most, in bytes, drawn evenly over the documents."""

    @model_validator(mode="after")
    def check_path(self) -> Self:
        if (self.kind == "train") == bool(self.path):
            raise ValueError(f"path = '{self.path}' goes with kind = 'sentencepiece' or 'huggingface' alone")
        return self

    @model_validator(mode="after")
    def check_special_tokens(self) -> Self:
        names = (self.end_of_document, *self.special_tokens)
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"end_of_document and special_tokens = {list(names)} must differ; rename one")
        return self
